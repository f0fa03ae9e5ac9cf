"""The engine that plans ahead of its tokens, on the CPU: block tables and tokens kept on the "device",
a step launched before the last one's tokens are read, or replayed.  Attention is torch's, told what a GPU's
kernels are told; tokens are chosen by the Triton kernels in their interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.continuous_batching import LLM, build_draft_head, loaded_model
from server.ops.attention import AttentionBackend, AttentionBatch, ChunkSpan
from server.ops.backend import AttentionChoice, LayeredBackend
from server.ops.layer_ops import LayerOps
from server.ops.paged_attention import PagedAttention, PagedBatch
from server.ops.torch.attention import TorchAttention
from server.worker import decode_graphs as cuda_graphs
from server.worker.prompt_graphs import Cutter, PromptGraphs, attend
from server.worker.runner import PagedModelRunner
from tests.continuous_batching.engines import small_llm


class PagedTorchAttention(PagedAttention):
    """`TorchAttention` behind the interface of kernels that walk block tables."""

    name = "paged torch"
    capabilities = replace(TorchAttention.capabilities, overlaps=True)

    def prepare(self, batch: PagedBatch) -> None:
        super().prepare(batch)
        self._inner = TorchAttention(self.shape, self.rotaries, self.cache)
        self._lines = int((batch.positions >= 0).sum())  # padding, at the end, stores nothing
        count, size = min(batch.num_decodes, self._lines), self.shape.block_size
        positions, rows = batch.positions[: self._lines].long(), batch.rows[: self._lines].long()
        tables = batch.tables.long()
        spans = []
        if batch.chunks is not None:
            for index, (begin, end) in enumerate(pairwise(batch.chunks.bounds.tolist())):
                length = int(batch.chunks.lengths[index])
                blocks = tables[int(batch.chunks.rows[index]), : -(-length // size)]
                spans.append(ChunkSpan(count + begin, count + end, length - (end - begin), blocks))
        self._inner.prepare(
            AttentionBatch(
                positions=positions,
                slot_blocks=tables[rows, positions // size],
                slot_offsets=positions % size,
                decode_lengths=(positions[:count] + 1).numpy(),
                decode_tables=tables[rows[:count]],
                chunks=spans,
            )
        )

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        lines = slice(self._lines)
        output = self._inner.forward(layer, query[lines], key[lines], value[lines], sinks)
        output = torch.cat((output, torch.zeros(len(query) - len(output), *output.shape[1:])))
        return output if out is None else out.copy_(output)


class RecordedCalls(dict[Hashable, Callable[[], Any]]):
    """In place of CUDA graphs: what was captured is called again, on the tensors of then."""

    def __init__(self, *_: torch.device) -> None:
        super().__init__()

    capture = dict.__setitem__

    def replay(self, key: Hashable) -> Any:
        return self[key]()


class AtOnce(Cutter):
    """Attends at each cut, for as many tokens as there are."""

    def __init__(self, graphs: RunAnew, size: int, count: int) -> None:
        super().__init__(graphs._positions[:size], graphs._buffers)
        self._graphs, self._count = graphs, count

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        attended = super().forward(layer, query, key, value, sinks, out)
        attend(self._graphs._attention, self.cuts[-1], self._count)
        return attended


class RunAnew(PromptGraphs):
    """In place of CUDA graphs: the padded pass is computed again, on the tensors that would be captured."""

    runs = 0

    def capture(self) -> None:
        with torch.inference_mode():
            for size in reversed(self._sizes):
                self._passes[size] = Cutter(self._positions[:size], self._buffers)
                self._compute(self._passes[size], size)

    def _replay(self, size: int, count: int) -> None:
        type(self).runs += 1
        self._compute(AtOnce(self, size, count), size)


def compute_with(
    monkeypatch: pytest.MonkeyPatch, attention: type[AttentionBackend[Any]], layer_ops: LayerOps
) -> None:
    """Let engines run on such attention and layer arithmetic."""
    choice = AttentionChoice(attention.name, attention, attention.capabilities, "a test")
    backend = LayeredBackend(choice, layer_ops, "a test")
    for module in (loaded_model, build_draft_head):
        monkeypatch.setattr(module, "choose_backend", lambda *_, **__: backend)


def overlapped_llm(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    num_blocks: int,
    replayed: bool = False,
    **sizes: Any,
) -> LLM:
    compute_with(monkeypatch, PagedTorchAttention, LayerOps())
    llm = small_llm(model, num_blocks=num_blocks, num_blocks_cpu=50, **sizes)
    runner = llm.engine.worker.runner
    assert isinstance(runner, PagedModelRunner)
    if replayed:
        monkeypatch.setattr(cuda_graphs, "CapturedCalls", RecordedCalls)
        runner.capture()
        choice_of(llm)._captured = RecordedCalls()
        monkeypatch.setattr("server.worker.runner.PromptGraphs", RunAnew)
        runner.capture_prompts(longest=1024)
    return llm


def choice_of(llm: LLM) -> Any:
    assert llm.engine.worker.decoder.sampler is not None
    return llm.engine.worker.decoder.sampler
