"""From a step to device tensors, for backends that walk block tables themselves.

Block tables and tokens live on the device; a step sends one packed array of what changed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import PackedTransfer, aligned, to_device
from server.layers.weights import EmbeddingRows
from server.ops.hidden_states import HiddenStates
from server.ops.paged_attention import QUERY_TILE, Chunks, PagedBatch, SharedPrefixes
from server.sampling.verification import GpuDrafts, describe_drafts
from server.scheduling.step import StepInput
from server.worker.batch import ForwardBatch
from server.worker.shared_prefixes import PrefixFinder

_SECTIONS = 7
"""Of what a step of decodes sends, of as many elements as it has lines: rows, positions, the two of
`SharedPrefixes`, the three of `GpuDrafts`. Its tokens are one more, found on the device."""


class PagedBatchBuilder:
    """Builds batches; keeps the block tables, of which a step sends only what changed.

    Where a sequence holds no block, because its window is past it, a table has some block of the pool.

    Args:
        max_rows: most sequences that run at once; row `max_rows` stands for padding.
        max_lines: most lines of a step whose tokens are chosen.
        max_blocks: blocks of the longest sequence.
        max_tokens: most tokens of a step.
        block_size: tokens a block.
        tokens: int32 [max_rows + 1, length], contiguous: those of each sequence.
        groups: how many groups of layers there are.
        prefixes: finds what decodes begin with; None: it is not looked for.
        embedding: steps of decodes begin with its rows, looked up; None: the model looks them up.
    """

    def __init__(
        self,
        max_rows: int,
        max_lines: int,
        max_blocks: int,
        max_tokens: int,
        block_size: int,
        tokens: Tensor,
        groups: int = 1,
        prefixes: PrefixFinder | None = None,
        embedding: EmbeddingRows | None = None,
    ) -> None:
        self.max_rows = max_rows
        self.max_lines = max_lines
        self._block_size = block_size
        self._tokens = tokens
        self._prefixes = prefixes
        # attention keeps memory for as many decodes as there are tables
        self._tables = torch.zeros(
            (groups, max_lines + 1, max_blocks), dtype=torch.int32, device=tokens.device
        )
        self._inputs = torch.zeros(
            (_SECTIONS + 1, aligned(max_lines)), dtype=torch.int32, device=tokens.device
        )
        self._embedding, self._embedded = embedding, None
        if embedding is not None:
            self._embedded = embedding.weight.new_zeros(max_lines, embedding.weight.shape[1])
        capacity = 4 * max_tokens + 14 * max_lines + 2 * groups * max_rows * max_blocks + 20 * aligned(1)
        self._transfer = PackedTransfer(capacity, tokens.device)

    @property
    def idle_slot(self) -> int:
        """One that no sequence ever has, and whose blocks are the pool's first."""
        return self.max_rows

    def decode_batch(self, size: int, *, drafted: bool = False) -> ForwardBatch:
        """The batch of any step of `size` decodes: its tensors are always in the same place.

        Args:
            drafted: some of them are drafted tokens, or computed again.
        """
        rows, positions, prefixes, sharers, *described, token_ids = self._inputs[:, :size]
        # the kernel of one decode alone has nothing to ask
        attention = self._attention(
            PagedBatch(size, rows, positions, self._tables[0], redone=size if drafted else 0),
            SharedPrefixes(prefixes, sharers) if size > 1 else None,
        )
        drafts = GpuDrafts(*described) if drafted else None
        embedded = None if self._embedded is None else self._embedded[:size]
        return ForwardBatch(token_ids, None, attention, rows, positions, drafts, embedded=embedded)

    def send_decodes(self, step: StepInput, size: int) -> None:
        """Fill the `decode_batch` of `size` for a step without chunks, padded: decodes, drafts, and behind
        them decodes that are computed again."""
        from server.worker.triton_begin import begin_decodes

        slots, positions = step.sampled()
        again, places_again = step.redone()
        chosen, count = len(slots), len(slots) + len(again)
        sections = np.zeros((_SECTIONS, self._inputs.shape[1]), np.int32)
        rows, places, shared, described = sections[0], sections[1], sections[2:4], sections[4:]
        rows[:chosen], rows[chosen:count], rows[count:] = slots, again, self.max_rows
        places[:chosen], places[chosen:count], places[count:] = positions, places_again, -1
        shared[:, :count] = self._shared(step, rows[:count], places[:count])
        shared[1, count:] = 1
        if len(step.draft_lines) or len(again):
            described[:, :chosen] = describe_drafts(step)
            # like drafted tokens: nothing is written to the token table behind them
            described[0, chosen:count] = 1
        at, blocks = self._changed_tables(step)
        with self._transfer.written([sections, at, blocks]) as (sent, (_, first_place, first_block)):
            room = first_block - first_place
            begin_decodes(
                sent, self._inputs, self._tokens, self._tables, size, len(at), room,
                self._embedding, self._embedded,
            )  # fmt: skip

    def build(self, step: StepInput) -> ForwardBatch:
        """The batch of any step."""
        redone_slots, redone_positions = step.redone()
        drafted = len(step.draft_tokens)
        decodes = len(step.decode_slots) + drafted + len(redone_slots)
        ahead_slots, ahead_positions = step.drafted() if drafted else (redone_slots[:0], redone_positions[:0])
        rows = np.concatenate((step.decode_slots, ahead_slots, redone_slots, step.chunk_slots))
        lengths = np.concatenate((np.ones(decodes, np.int64), step.chunk_ends - step.chunk_starts))
        chunks = zip(step.chunk_starts.tolist(), step.chunk_ends.tolist(), strict=True)
        runs = [np.arange(start, end, dtype=np.int32) for start, end in chunks]
        positions = np.concatenate((step.decode_positions, ahead_positions, redone_positions, *runs))
        samples = np.concatenate((np.arange(decodes) < decodes - len(redone_slots), step.chunk_samples))
        ends = np.cumsum(lengths)
        sampled, (owners, scored) = (ends - 1)[samples], step.scored()
        begins = (ends - lengths)[decodes:]
        logit_rows = np.concatenate((sampled, begins[owners] + scored - step.chunk_starts[owners]))
        sent = self._transfer.send(
            [
                np.repeat(rows, lengths), positions,
                logit_rows, rows[samples], positions[sampled],
                *self._changed_tables(step), *self._shared(step, rows[:decodes], positions[:decodes]),
                *(describe_drafts(step) if drafted else ()), *_describe(step, decodes),
            ]
        )  # fmt: skip
        token_rows, token_positions, lines, sample_rows, sample_positions, at, blocks = sent[:7]
        self._write_tables(at, blocks)
        described = None
        if len(step.chunk_slots):
            tiles, bounds, contexts, chunk_rows = sent[-4:]
            longest = int((step.chunk_ends - step.chunk_starts).max())
            longest_context = int(step.chunk_ends.max())
            described = Chunks(tiles.view(-1, 2), bounds, contexts, chunk_rows, longest, longest_context)
        places = token_rows * self._tokens.shape[1] + token_positions
        redone = decodes if drafted else len(redone_slots)
        return ForwardBatch(
            token_ids=self._tokens.view(-1).index_select(0, places),
            logit_rows=lines,
            attention=self._attention(
                PagedBatch(decodes, token_rows, token_positions, self._tables[0], described, redone),
                SharedPrefixes(*sent[7:9]) if decodes > 1 else None,
            ),
            sample_rows=sample_rows,
            sample_positions=sample_positions,
            drafts=GpuDrafts(*sent[9:12]) if drafted else None,
            states=self._wanted_states(step),
        )

    def _attention(self, batch: PagedBatch, shared: SharedPrefixes | None) -> list[PagedBatch]:
        """The batch of each group of layers; `shared` is what the finder's group has."""
        found_for = None if self._prefixes is None else self._prefixes.group
        return [
            replace(batch, tables=tables, shared=shared if group == found_for else None)
            for group, tables in enumerate(self._tables)
        ]

    def _shared(self, step: StepInput, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int32 [2, decodes]: what the decodes of a step begin with, as `SharedPrefixes` has it."""
        if self._prefixes is None:
            return np.array([[0], [1]], np.int32).repeat(len(slots), 1)
        self._prefixes.follow(step)
        return self._prefixes.find(slots, positions)

    def _wanted_states(self, step: StepInput) -> HiddenStates | None:
        if not len(step.state_chunks):
            return None
        return HiddenStates(to_device(step.state_rows(), self._tokens.device))

    def _changed_tables(self, step: StepInput) -> tuple[np.ndarray, np.ndarray]:
        """(places in the flat tables, blocks) that the device does not know of yet."""
        _, rows, width = self._tables.shape
        places = (step.table_groups * np.int32(rows) + step.table_slots) * np.int32(width) + step.table_places
        return places, step.table_blocks

    def _write_tables(self, places: Tensor, blocks: Tensor) -> None:
        if len(places):
            self._tables.view(-1).index_copy_(0, places.long(), blocks)


def _describe(step: StepInput, decodes: int) -> list[np.ndarray]:
    """Tiles, bounds, contexts and rows of the chunks, as `ops.paged_attention.Chunks` has them."""
    if not len(step.chunk_slots):
        return []
    starts, ends = step.chunk_starts.tolist(), step.chunk_ends.tolist()
    bounds = np.cumsum([0, *(end - start for start, end in zip(starts, ends, strict=True))])
    tiles = [
        (decodes + begin + offset, decodes + begin + end - start, start + offset)
        for start, end, begin in zip(starts, ends, bounds.tolist(), strict=False)
        for offset in range(0, end - start, QUERY_TILE)
    ]
    tiles.sort(key=lambda tile: -tile[2])  # the longest first: none of them is left over at the end
    return [np.array(tiles)[:, :2], bounds, step.chunk_ends, step.chunk_slots]
