"""Runs plans on the model: block copies, one forward pass, logits. It decides nothing."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from server.continuous_batching.attention.base import AttentionBackend
from server.continuous_batching.cache.storage import CacheStorage
from server.continuous_batching.engine.batch import BatchBuilder
from server.continuous_batching.kernels.base import Kernels
from server.continuous_batching.models.decoder import Decoder as DecoderModel
from server.continuous_batching.scheduler.cost import PreemptionCost
from server.continuous_batching.scheduler.plan import Plan


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
        attention: AttentionBackend,
        kernels: Kernels,
        builder: BatchBuilder,
        cost: PreemptionCost,
    ) -> None:
        self.model = model
        self.attention = attention
        self.kernels = kernels
        self._storage = storage
        self._builder = builder
        self._cost = cost

    def copy_blocks(self, plan: Plan) -> None:
        """Carry out the plan's swaps and copies."""
        swapped = len(plan.swap_out) + len(plan.swap_in)
        if swapped:
            begin = time.perf_counter()
            self._storage.swap_out(plan.swap_out)
            self._storage.swap_in(plan.swap_in)
            self._cost.observe_copy(swapped, time.perf_counter() - begin)
        self._storage.copy(plan.copies)

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Tensor:
        """Compute the plan's tokens.

        Returns:
            float32 [sampled, vocab]: logits for `plan.sampled()`, in that order.
        """
        begin = time.perf_counter()
        batch = self._builder.build(plan)
        self.attention.prepare(batch.attention)
        logits = self.kernels.run(self.model, batch.token_ids, batch.logit_rows, self.attention)
        prompt_tokens = plan.num_tokens - len(plan.decodes)
        if prompt_tokens > len(plan.decodes):
            self._cost.observe_prefill(prompt_tokens, time.perf_counter() - begin)
        return logits
