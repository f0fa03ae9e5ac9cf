"""Runs plans on the model: block copies, one forward pass, logits. It decides nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionBackend
from server.continuous_batching.attention.paged import PagedAttention
from server.continuous_batching.cache.storage import CacheStorage
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.decoding.step_logits import StepLogits
from server.continuous_batching.engine.batch import BatchBuilder, ForwardBatch
from server.continuous_batching.engine.cuda_graphs import DecodeGraphs
from server.continuous_batching.engine.paged_batch import PagedBatchBuilder
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.models.decoder import Decoder as DecoderModel
from server.continuous_batching.scheduler.cost import PreemptionCost
from server.continuous_batching.scheduler.plan import Chunk, Plan
from server.continuous_batching.scheduler.request import Request
from server.continuous_batching.stopwatch import Stopwatch


class ModelRunner:
    """The model, its cache memory and its attention backend.

    Args:
        model: weights loaded.
        storage: the cache's memory.
        attention: made for that memory.
        kernels: the arithmetic of the layers.
        builder: makes the tensors.
        cost: is told how long copies and prompts took.
    """

    def __init__(
        self,
        model: DecoderModel,
        storage: CacheStorage,
        attention: AttentionBackend[Any],
        kernels: Kernels,
        builder: BatchBuilder | PagedBatchBuilder,
        cost: PreemptionCost,
    ) -> None:
        self.model = model
        self.attention = attention
        self.kernels = kernels
        self._storage = storage
        self._builder = builder
        self._cost = cost
        self._stopwatch = Stopwatch(storage.device.device)

    def copy_blocks(self, plan: Plan) -> None:
        """Start the plan's swaps, which run beside its forward pass, and its copies, which precede it."""
        self._storage.settle()
        if plan.swap_out or plan.swap_in:
            needed = plan.written_blocks(self._storage.block_size) if plan.swap_out else ()
            self._storage.swap(plan.swap_out, plan.swap_in, needed, self._cost.observe_copy)
        self._storage.copy(plan.copies)

    @torch.inference_mode()
    def forward(self, plan: Plan) -> StepLogits:
        """Compute the plan's tokens.

        Returns:
            Logits for `plan.sampled()`, in that order; the plan's decodes may stand in another than before.
        """
        self._stopwatch.start()
        batch = self._builder.build(plan)
        logits = self._compute(batch)
        prompt_tokens = plan.num_prompt_tokens
        if prompt_tokens > len(plan.decodes):
            self._stopwatch.stop(partial(self._cost.observe_prefill, prompt_tokens))
        return StepLogits(logits, batch.sample_rows, batch.sample_positions)

    def _compute(self, batch: ForwardBatch, out: Tensor | None = None) -> Tensor:
        self.attention.prepare(batch.attention)
        return self.kernels.run(self.model, batch.token_ids, batch.logit_rows, self.attention, out)


class PagedModelRunner(ModelRunner):
    """Keeps tokens on the device from step to step, and replays steps of decodes as CUDA graphs.

    Args:
        builder: makes the tensors.
        device_rows: the tokens.
    """

    _builder: PagedBatchBuilder

    def __init__(
        self,
        model: DecoderModel,
        storage: CacheStorage,
        attention: PagedAttention,
        kernels: Kernels,
        builder: PagedBatchBuilder,
        cost: PreemptionCost,
        device_rows: DeviceRows,
    ) -> None:
        super().__init__(model, storage, attention, kernels, builder, cost)
        self._device_rows = device_rows
        self._graphs: DecodeGraphs | None = None
        self._logits = torch.empty(0)

    def capture(self) -> None:
        """Capture the graphs; on CUDA, once, when everything else is in its place."""
        rows, vocab, weight = self._builder.max_rows, self.model.config.vocab_size, self.model.embedding
        # one place for the logits of all sizes: the graphs share the memory of their intermediates
        self._logits = torch.empty((rows, vocab), dtype=weight.dtype, device=weight.device)
        self._builder.send_decodes(Plan())  # only padding: what is computed meanwhile touches no sequence
        self._graphs = DecodeGraphs(self._decode, rows, weight.device)

    @torch.inference_mode()
    def warm_up(self, longest: int) -> StepLogits:
        """Compute prompts of 1, 2 and `longest` tokens: no request shall wait for kernels to be compiled.

        They stand in the row of padding, whose keys and values go to a block that nobody holds yet.

        Returns:
            What the last token is followed by.
        """
        self._storage.copy([(0, 0)])
        for length in sorted({1, min(2, longest), longest}):
            request = Request("warm-up", [0] * length, SamplingParams(max_new_tokens=1), arrival=0.0)
            (sequence,) = request.sequences
            sequence.row = self._builder.max_rows
            batch = self._builder.build(Plan(chunks=[Chunk(sequence, 0, length)]))
            logits = self._compute(batch)
        return StepLogits(logits, batch.sample_rows, batch.sample_positions)

    def _decode(self, size: int) -> StepLogits:
        """A step of `size` decodes, and the choice of tokens as long as nobody has further options."""
        batch = self._builder.decode_batch(size)
        rows, positions = batch.sample_rows, batch.sample_positions
        assert rows is not None and positions is not None
        batch.token_ids = self._builder.begin_decodes(size)
        logits = self._compute(batch, self._logits[:size])
        return StepLogits(logits, rows, positions, self._device_rows.sample(logits, rows, positions))

    def forward(self, plan: Plan) -> StepLogits:
        # the longest contexts first: attention begins in this order, and is not left with one in the end
        plan.decodes.sort(key=lambda sequence: -sequence.num_computed)
        try:
            return self._launch(plan)
        except Exception:
            for sequence in plan.sequences():
                sequence.mirrored = 0  # what there was to write of block tables may not have been written
            raise

    def _launch(self, plan: Plan) -> StepLogits:
        self._device_rows.flush()
        if self._graphs is None or plan.chunks:
            return super().forward(plan)
        size = self._graphs.size_for(len(plan.decodes))
        self._builder.send_decodes(plan)
        return replace(self._graphs.replay(size), padding=size - len(plan.decodes))
