"""From a step to the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.ops.attention import AttentionBatch, ChunkSpan
from server.ops.hidden_states import HiddenStates
from server.ops.paged_attention import PagedBatch
from server.sampling.verification import GpuDrafts
from server.scheduling.step import StepInput


@dataclass(slots=True)
class ForwardBatch:
    """Inputs of a forward pass.

    Attributes:
        token_ids: int64 [tokens].
        logit_rows: int64 [sampled + scored], rows of the tokens whose successors are chosen, then of those
            whose successors' log probabilities are reported; None: all.
        attention: where the tokens' keys and values live, for each group of layers, in the form that the
            backend takes.
        sample_rows, sample_positions: where tokens stay on the device, int32 [sampled]: table row and
            place of those tokens.
        drafts: where tokens stay on the device, which of these follow drafted tokens; None: none does.
        states: the hidden states that are wanted.
        embedded: [tokens, hidden], rows of the embedding that are looked up already; None: the model does it.
    """

    token_ids: Tensor
    logit_rows: Tensor | None
    attention: Sequence[AttentionBatch] | Sequence[PagedBatch]
    sample_rows: Tensor | None = None
    sample_positions: Tensor | None = None
    drafts: GpuDrafts | None = None
    states: HiddenStates | None = None
    embedded: Tensor | None = None


Chunk = tuple[int, int, int, int]
"""(slot, position of its first token; first token and end among the step's tokens)."""


class BatchBuilder:
    """Builds batches; keeps the block tables.

    Where a sequence holds no block, because its window is past it, a table has some block of the pool.

    Args:
        groups: how many groups of layers there are.
        max_rows: most sequences that run at once.
        max_blocks: blocks of the longest sequence.
        block_size: tokens a block.
        tokens: int32 [slots, length], those of each sequence, on the CPU.
        device: where the tensors go.
    """

    def __init__(
        self,
        max_rows: int,
        max_blocks: int,
        block_size: int,
        tokens: Tensor,
        device: torch.device,
        groups: int = 1,
    ) -> None:
        self._tables = np.zeros((groups, max_rows, max_blocks), np.int64)
        self._tokens = tokens.numpy()
        self._block_size = block_size
        self._device = device

    @property
    def idle_slot(self) -> int:
        """One that no sequence has before the first step, and whose blocks are the pool's first."""
        return 0

    def build(self, step: StepInput) -> ForwardBatch:
        self._tables[step.table_groups, step.table_slots, step.table_places] = step.table_blocks
        slots, decoded = step.decode_slots, step.decode_positions.astype(np.int64)
        tokens = [self._tokens[slots, decoded]]
        if len(step.draft_lines):  # a drafted token is computed as one more decode of its sequence
            ahead, places = step.drafted()
            slots, decoded = np.concatenate((slots, ahead)), np.concatenate((decoded, places))
            tokens.append(step.draft_tokens)
        logit_rows = list(range(len(slots)))
        if len(step.redone_slots):  # likewise, but nothing is chosen behind it
            redone, places = step.redone()
            slots, decoded = np.concatenate((slots, redone)), np.concatenate((decoded, places))
            tokens.append(self._tokens[redone, places])
        positions, rows = [decoded], [slots]
        chunks: list[Chunk] = []
        begin = len(slots)
        described = zip(
            step.chunk_slots.tolist(),
            step.chunk_starts.tolist(),
            step.chunk_ends.tolist(),
            step.chunk_samples.tolist(),
            strict=True,
        )
        for slot, start, end, samples in described:
            stop = begin + end - start
            positions.append(np.arange(start, end))
            rows.append(np.full(end - start, slot))
            tokens.append(self._tokens[slot, start:end])
            chunks.append((slot, start, begin, stop))
            if samples:
                logit_rows.append(stop - 1)
            begin = stop
        owners, scored = step.scored()
        if len(owners):
            begins = np.array([chunk[2] for chunk in chunks])
            logit_rows += (begins[owners] + scored - step.chunk_starts[owners]).tolist()
        all_positions = np.concatenate(positions)
        offsets, place = self._tensor(all_positions % self._block_size), self._tensor(all_positions)
        at = np.concatenate(rows), all_positions // self._block_size
        return ForwardBatch(
            token_ids=self._tensor(np.concatenate(tokens, dtype=np.int64)),
            logit_rows=self._tensor(np.asarray(logit_rows, np.int64)),
            attention=[
                AttentionBatch(
                    positions=place,
                    slot_blocks=self._tensor(table[at]),
                    slot_offsets=offsets,
                    decode_lengths=decoded + 1,
                    decode_tables=self._tensor(table[slots, : self._width(decoded)]),
                    chunks=[self._span(table, *chunk) for chunk in chunks],
                )
                for table in self._tables
            ],
            states=HiddenStates(self._tensor(step.state_rows())) if len(step.state_chunks) else None,
        )

    def _width(self, decoded: np.ndarray) -> int:
        """Blocks of the longest of the decodes."""
        return int(decoded.max()) // self._block_size + 1 if len(decoded) else 0

    def _span(self, table: np.ndarray, slot: int, start: int, begin: int, end: int) -> ChunkSpan:
        held = -(-(start + end - begin) // self._block_size)
        return ChunkSpan(begin, end, start, self._tensor(table[slot, :held].copy()))

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)
