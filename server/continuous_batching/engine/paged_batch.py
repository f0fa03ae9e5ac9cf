"""From a plan to device tensors, for backends that walk block tables themselves.

Block tables and newest tokens live on the device; a step sends one packed array of what changed.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.attention.paged import QUERY_TILE, Chunks, PagedBatch
from server.continuous_batching.engine.batch import ForwardBatch
from server.continuous_batching.scheduler.plan import Chunk, Plan
from server.continuous_batching.scheduler.request import Sequence
from server.continuous_batching.transfer import PackedTransfer, aligned


class PagedBatchBuilder:
    """Builds batches; mirrors block tables by row, so that a step sends only what changed.

    Args:
        max_rows: most sequences that run at once; row `max_rows` stands for padding.
        max_blocks: blocks of the longest sequence.
        max_tokens: most tokens of a step.
        block_size: tokens a block.
        last_tokens: int32 [max_rows + 1], newest token of each row, kept by who chooses tokens.
    """

    def __init__(
        self, max_rows: int, max_blocks: int, max_tokens: int, block_size: int, last_tokens: Tensor
    ) -> None:
        self.max_rows = max_rows
        self._block_size = block_size
        self._section = aligned(max_rows)
        self._last_tokens = last_tokens
        self._tables = torch.zeros((max_rows + 1, max_blocks), dtype=torch.int32, device=last_tokens.device)
        capacity = 4 * max_tokens + 8 * max_rows + 2 * max_rows * max_blocks + 16 * aligned(1)
        self._transfer = PackedTransfer(capacity, last_tokens.device)

    def decode_batch(self, size: int) -> ForwardBatch:
        """The batch of any step of `size` decodes: its tensors are always in the same place.

        `token_ids` is empty: `begin_decodes` knows them.
        """
        rows, positions, _, _ = self._sections(size)
        return ForwardBatch(rows[:0], None, PagedBatch(size, rows, positions, self._tables), rows, positions)

    def begin_decodes(self, size: int) -> Tensor:
        """Write what `send_decodes` sent of the block tables; int32 [size], the tokens to compute."""
        from server.continuous_batching.kernels.triton_begin import begin_decodes

        rows, _, places, blocks = self._sections(size)
        return begin_decodes(rows, self._last_tokens, places, blocks, self._tables)

    def send_decodes(self, plan: Plan) -> None:
        """Fill `decode_batch` of any size for a plan of decodes only, padded."""
        decodes, count = plan.decodes, len(plan.decodes)
        # a sequence that goes on has one new block at most; one that forked or was swapped in may have many
        places, blocks = self._changed_tables(decodes)
        news = min(len(places), count)
        sections = np.full((4, self._section), -1, np.int32)
        sections[0] = self.max_rows
        sections[0, :count] = np.fromiter((s.row for s in decodes), np.int32, count)
        sections[1, :count] = np.fromiter((s.num_computed for s in decodes), np.int32, count)
        sections[2, :news], sections[3, :news] = places[:news], blocks[:news]
        self._write_tables(*self._transfer.send([sections, places[news:], blocks[news:]])[1:])

    def _sections(self, size: int) -> list[Tensor]:
        """Rows, positions, places in the tables and blocks for there, of `size` decodes."""
        return [self._transfer.place(at * self._section, size) for at in range(4)]

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of any step."""
        decodes, chunks = plan.decodes, plan.chunks
        rows = np.fromiter((s.row for s in plan.sequences()), np.int32)
        lengths = np.array([1] * len(decodes) + [chunk.length for chunk in chunks])
        starts = [np.fromiter((s.num_computed for s in decodes), np.int32, len(decodes))]
        starts += [np.arange(chunk.start, chunk.end, dtype=np.int32) for chunk in chunks]
        positions = np.concatenate(starts)
        known = [chunk.sequence.history.slice(chunk.start, chunk.end) for chunk in chunks]
        tokens = np.concatenate([np.empty(0, np.int32), *(np.array(part, np.int32) for part in known)])
        ends = np.cumsum(lengths) - 1
        samples = np.array([True] * len(decodes) + [chunk.samples for chunk in chunks])
        logit_rows = ends[samples]
        sent = self._transfer.send(
            [
                np.repeat(rows, lengths), positions, tokens,
                logit_rows, rows[samples], positions[logit_rows],
                *self._changed_tables(plan.sequences()), *_describe(chunks, rows, len(decodes)),
            ]
        )  # fmt: skip
        token_rows, token_positions, chunk_tokens, lines, sample_rows, sample_positions, at, blocks = sent[:8]
        self._write_tables(at, blocks)
        decoded = self._last_tokens.index_select(0, token_rows[: len(decodes)])
        described = None
        if chunks:
            tiles, bounds, contexts, chunk_rows = sent[8:]
            longest, longest_context = max(c.length for c in chunks), max(c.end for c in chunks)
            described = Chunks(tiles.view(-1, 2), bounds, contexts, chunk_rows, longest, longest_context)
        return ForwardBatch(
            token_ids=torch.cat((decoded, chunk_tokens)),
            logit_rows=lines,
            attention=PagedBatch(len(decodes), token_rows, token_positions, self._tables, described),
            sample_rows=sample_rows,
            sample_positions=sample_positions,
        )

    def _changed_tables(self, sequences: Seq[Sequence]) -> tuple[np.ndarray, np.ndarray]:
        """(places in the flat tables, blocks) that the device does not know of yet."""
        width = self._tables.shape[1]
        places: list[int] = []
        blocks: list[int] = []
        for sequence in sequences:
            held = len(sequence.blocks)
            if sequence.mirrored < held:
                begin = sequence.row * width
                places.extend(range(begin + sequence.mirrored, begin + held))
                blocks.extend(sequence.blocks[sequence.mirrored :])
                sequence.mirrored = held
        return np.array(places, np.int32), np.array(blocks, np.int32)

    def _write_tables(self, places: Tensor, blocks: Tensor) -> None:
        if len(places):
            self._tables.view(-1).index_copy_(0, places.long(), blocks)


def _describe(chunks: Seq[Chunk], rows: np.ndarray, num_decodes: int) -> list[np.ndarray]:
    """Tiles, bounds, contexts and rows of `chunks`, as `attention.paged.Chunks` has them."""
    if not chunks:
        return []
    bounds = np.cumsum([0, *(chunk.length for chunk in chunks)])
    tiles = [
        (num_decodes + begin + offset, num_decodes + begin + chunk.length, chunk.start + offset)
        for chunk, begin in zip(chunks, bounds.tolist(), strict=False)
        for offset in range(0, chunk.length, QUERY_TILE)
    ]
    tiles.sort(key=lambda tile: -tile[2])  # the longest first: none of them is left over at the end
    contexts = np.array([chunk.end for chunk in chunks])
    return [np.array(tiles)[:, :2], bounds, contexts, rows[num_decodes:]]
