"""From a plan to the tensors of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionBatch, ChunkSpan
from server.continuous_batching.attention.paged import PagedBatch
from server.continuous_batching.scheduler.plan import Plan
from server.continuous_batching.scheduler.request import Sequence


@dataclass(slots=True)
class ForwardBatch:
    """Inputs of a forward pass.

    Attributes:
        token_ids: int64 [tokens].
        logit_rows: int64 [sampled], rows of the tokens whose successors are chosen; None: all.
        attention: where the tokens' keys and values live, in the form that the backend takes.
        sample_rows, sample_positions: where tokens stay on the device, int32 [sampled]: table row and
            place of those tokens.
    """

    token_ids: Tensor
    logit_rows: Tensor | None
    attention: AttentionBatch | PagedBatch
    sample_rows: Tensor | None = None
    sample_positions: Tensor | None = None


class BatchBuilder:
    """Builds batches; mirrors block tables by row, so that a step writes only what changed.

    Args:
        max_rows: most sequences that run at once.
        max_blocks: blocks of the longest sequence.
        block_size: tokens a block.
        device: where the tensors go.
    """

    def __init__(self, max_rows: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self._tables = np.zeros((max_rows, max_blocks), np.int64)
        self._block_size = block_size
        self._device = device

    def build(self, plan: Plan) -> ForwardBatch:
        decodes = plan.decodes
        rows = self._mirror(decodes)
        positions = [np.fromiter((s.num_computed for s in decodes), np.int64, len(decodes))]
        tokens = [np.fromiter((s.history.last for s in decodes), np.int64, len(decodes))]
        if plan.drafts:  # a drafted token is computed as one more decode of its sequence
            drafted = [np.asarray(draft.tokens) for draft in plan.drafts]
            bases = [draft.sequence.num_computed + 1 for draft in plan.drafts]
            lines = np.repeat([draft.line for draft in plan.drafts], [len(part) for part in drafted])
            rows = np.concatenate((rows, rows[lines]))
            tokens = [np.concatenate((tokens[0], *drafted))]
            ahead = [base + np.arange(len(part)) for base, part in zip(bases, drafted, strict=True)]
            positions = [np.concatenate((positions[0], *ahead))]
        blocks = [self._tables[rows, positions[0] // self._block_size]]
        logit_rows = list(range(len(rows)))
        lengths = positions[0] + 1
        width = -(-int(lengths.max()) // self._block_size) if len(rows) else 0
        spans, begin = [], len(rows)
        for chunk in plan.chunks:
            places = np.arange(chunk.start, chunk.end)
            table = np.asarray(chunk.sequence.blocks)
            end = begin + chunk.length
            positions.append(places)
            tokens.append(np.asarray(chunk.sequence.history.slice(chunk.start, chunk.end)))
            blocks.append(table[places // self._block_size])
            held = table[: -(-chunk.end // self._block_size)]
            spans.append(ChunkSpan(begin, end, chunk.start, self._tensor(held)))
            if chunk.samples:
                logit_rows.append(end - 1)
            begin = end
        all_positions = np.concatenate(positions)
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate(tokens)),
            logit_rows=self._tensor(np.asarray(logit_rows, np.int64)),
            attention=AttentionBatch(
                positions=self._tensor(all_positions),
                slot_blocks=self._tensor(np.concatenate(blocks)),
                slot_offsets=self._tensor(all_positions % self._block_size),
                decode_lengths=lengths,
                decode_tables=self._tensor(self._tables[rows, :width]),
                chunks=spans,
            ),
        )

    def _mirror(self, sequences: list[Sequence]) -> np.ndarray:
        """Bring the table rows of `sequences` up to date; returns their rows."""
        tables = self._tables
        for sequence in sequences:
            held = len(sequence.blocks)
            if sequence.mirrored < held:
                tables[sequence.row, sequence.mirrored : held] = sequence.blocks[sequence.mirrored :]
                sequence.mirrored = held
        return np.fromiter((s.row for s in sequences), np.int64, len(sequences))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)
