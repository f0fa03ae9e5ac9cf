"""Runs a draft head on one device: its own cache, and the states of the target that it has yet to read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.device.captured_calls import CapturedCalls, padded_size
from server.device.transfer import PackedTransfer, aligned, to_device
from server.models.heads.head import DraftHead
from server.ops.attention import AttentionBackend
from server.ops.layer_ops import LayerOps
from server.scheduling.limits import DRAFTED_LINES
from server.scheduling.step import StepInput
from server.worker.batch import BatchBuilder
from server.worker.decode_graphs import DRAFTED_SIZES, graph_sizes
from server.worker.paged_batch import PagedBatchBuilder

KEPT = 32
"""Places of a sequence whose states are kept: the newest ones, whose next tokens may not be known yet."""


class HeadRunner:
    """The head, its attention over its own cache, and the newest states of each slot.

    Steps are those of the head: its slots, its positions, its block tables. Their tokens come with them, for
    a place is computed with the token behind it.

    Args:
        head: weights loaded.
        ops: its arithmetic.
        attention: made for its cache.
        builder: makes the tensors of its steps.
        slots: most sequences that it follows.
    """

    def __init__(
        self,
        head: DraftHead,
        ops: LayerOps,
        attention: AttentionBackend[Any],
        builder: BatchBuilder | PagedBatchBuilder,
        slots: int,
    ) -> None:
        self.head = head
        self._ops = ops
        self._attention = attention
        self._builder = builder
        weight = head.embedding
        self._dtype, self._device = weight.dtype, weight.device
        width = head.head_spec.read_width
        self._kept = torch.zeros((slots * KEPT, width), dtype=self._dtype, device=self._device)
        self._captured: CapturedCalls[None] | None = None  # by (places, whether it is the first step)
        self._sizes: list[int] = []

    @torch.inference_mode()
    def keep(self, slots: np.ndarray, places: np.ndarray, rows: np.ndarray, states: Tensor) -> None:
        """Keep states for `draft`: those in `rows` of the target's step, at `places` of sequences.

        Args:
            slots, places, rows: integers [tokens].
            states: [rows of the step, read_width] (`Worker.layer_inputs`).
        """
        found = states.index_select(0, self._send(rows)).to(self._dtype)
        self._kept.index_copy_(0, self._send(_kept_at(slots, places)), found)

    @torch.inference_mode()
    def follow(self, step: StepInput, token_ids: np.ndarray, rows: np.ndarray, states: Tensor) -> None:
        """Compute chunks of places whose states are in `rows` of the target's step.

        Args:
            step: has nothing but chunks and block tables.
            token_ids: integers [tokens], behind each place.
            rows: integers [tokens].
            states: as of `keep`.
        """
        hidden = self.head.fuse(states.index_select(0, self._send(rows)).to(self._dtype))
        self._compute(step, token_ids, hidden)

    @torch.inference_mode()
    def draft(
        self,
        step: StepInput,
        token_ids: np.ndarray,
        slots: np.ndarray,
        places: np.ndarray,
        further: Sequence[StepInput],
    ) -> np.ndarray:
        """Compute the newest places, whose states are kept, and guess on from the last one of each sequence.

        Args:
            step: a chunk of each sequence, and the block tables of all steps.
            token_ids: integers [tokens], behind each place.
            slots, places: integers [tokens], under which `keep` was given their states.
            further: steps of one place more for each sequence, in the order of the chunks.

        Returns:
            int64 [sequences, 1 + further], the guesses.
        """
        kept, count = _kept_at(slots, places), len(step.chunk_slots)
        if self._captured is not None and len(token_ids) <= DRAFTED_LINES:
            self._begin(step, token_ids, kept)
            return self._replay(count, further)
        hidden = self.head.fuse(self._kept.index_select(0, self._send(kept)))
        x, rows = self._compute(step, token_ids, hidden)
        assert rows is not None
        x = x.index_select(0, rows)
        if self._captured is not None:
            self._take(x)
            return self._replay(count, further)
        chosen = [self.head.choose(x, self._ops)]
        for next_step in further:
            batch = self._builder.build(next_step)
            self._attention.prepare(*batch.attention)
            x = self.head(chosen[-1], x, self._attention, self._ops)
            chosen.append(self.head.choose(x, self._ops))
        return torch.stack(chosen, 1).cpu().numpy()

    def _compute(
        self, step: StepInput, token_ids: np.ndarray, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """([tokens, hidden], rows of the ends of chunks that sample)."""
        batch = self._builder.build(step)
        self._attention.prepare(*batch.attention)
        x = self.head(self._send(token_ids), hidden, self._attention, self._ops)
        return x, batch.logit_rows

    def _send(self, values: np.ndarray) -> Tensor:
        return to_device(values.astype(np.int64), self._device)

    # -- on a GPU, replayed ---------------------------------------------------------------------

    @torch.inference_mode()
    def capture(self, longest: int) -> None:
        """Compile the kernels of chunks of up to `longest` tokens, and capture the steps of drafts; on CUDA,
        once, when everything else is in its place."""
        builder = self._builder
        assert isinstance(builder, PagedBatchBuilder)
        idle = builder.idle_slot
        for length in sorted({2, *(longest >> halvings for halvings in range(longest.bit_length()))}):
            slot, start, end = np.array([[idle], [0], [length]], np.int32)
            samples = np.ones(1, bool)
            step = StepInput(chunk_slots=slot, chunk_starts=start, chunk_ends=end, chunk_samples=samples)
            states = self._kept.new_zeros(length, self._kept.shape[1])
            x, _ = self._compute(step, np.zeros(length), self.head.fuse(states))
        self._ids = torch.zeros(builder.max_rows, dtype=torch.int64, device=self._device)
        self._hidden = x.new_zeros(builder.max_rows, x.shape[1])
        self._section = aligned(DRAFTED_LINES)
        self._sent = PackedTransfer(3 * self._section, self._device)
        builder.send_decodes(StepInput(), builder.max_lines)  # only padding: this touches no sequence
        self._sizes, self._captured = graph_sizes(builder.max_rows), CapturedCalls(self._device)
        calls = {(size, True): partial(self._begin_on, size) for size in DRAFTED_SIZES}
        calls |= {(size, False): partial(self._step_on, size) for size in self._sizes}
        # the largest first: the others find room in its memory
        for key, call in sorted(calls.items(), reverse=True):
            call()  # compiles kernels
            self._captured.capture(key, call)

    def _begin_on(self, size: int) -> None:
        """The first step of a draft, of `size` places whose states are kept; as `_step_on`."""
        builder, section = self._builder, self._section
        assert isinstance(builder, PagedBatchBuilder)
        self._attention.prepare(*builder.decode_batch(size, drafted=True).attention)
        ids, kept = (self._sent.place(at * section, size) for at in range(2))
        x = self.head(ids, self.head.fuse(self._kept.index_select(0, kept)), self._attention, self._ops)
        rows = min(size, builder.max_rows)
        self._take(x.index_select(0, self._sent.place(2 * section, rows)))

    def _step_on(self, size: int) -> None:
        """One place more of `size` sequences, on tensors that stay where they are."""
        assert isinstance(self._builder, PagedBatchBuilder)
        self._attention.prepare(*self._builder.decode_batch(size).attention)
        self._take(self.head(self._ids[:size], self._hidden[:size].clone(), self._attention, self._ops))

    def _take(self, x: Tensor) -> None:
        """Choose the next tokens from `x`, and keep both as the input of the next step."""
        self._hidden[: len(x)].copy_(x)
        self._ids[: len(x)].copy_(self.head.choose(x, self._ops))

    def _begin(self, step: StepInput, token_ids: np.ndarray, kept: np.ndarray) -> None:
        """Replay the first step of drafts.

        Args:
            step: as of `draft`.
            token_ids: integers [tokens].
            kept: int64 [tokens], rows of the states that are kept.
        """
        assert isinstance(self._builder, PagedBatchBuilder) and self._captured is not None
        ends = np.cumsum(step.chunk_ends - step.chunk_starts) - 1
        inputs = np.zeros((3, self._section), np.int32)
        for row, values in zip(inputs, (token_ids, kept, ends), strict=True):
            row[: len(values)] = values
        self._sent.send([inputs])
        lines = StepInput(
            redone_slots=step.chunk_slots, redone_starts=step.chunk_starts, redone_ends=step.chunk_ends,
            table_groups=step.table_groups, table_slots=step.table_slots,
            table_places=step.table_places, table_blocks=step.table_blocks,
        )  # fmt: skip
        size = padded_size(DRAFTED_SIZES, len(token_ids))
        assert size is not None
        self._builder.send_decodes(lines, size)
        self._captured.replay((size, True))

    def _replay(self, count: int, further: Sequence[StepInput]) -> np.ndarray:
        """Replay the further steps; returns the guesses of all steps, as `draft` does.

        Args:
            count: number of sequences.
        """
        assert isinstance(self._builder, PagedBatchBuilder) and self._captured is not None
        size, chosen = padded_size(self._sizes, count), [self._ids[:count].clone()]
        assert size is not None
        for step in further:
            self._builder.send_decodes(step, size)
            self._captured.replay((size, False))
            chosen.append(self._ids[:count].clone())
        return torch.stack(chosen, 1).cpu().numpy()


def _kept_at(slots: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64: the rows in which the states of these places are kept."""
    rows: np.ndarray = slots.astype(np.int64) * KEPT + places % KEPT
    return rows
