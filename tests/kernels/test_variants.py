"""Steps with prompts launch their decodes as captured steps do: no kernel is compiled while serving."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.continuous_batching.attention import triton_decode
from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.paged import PagedBatch
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.engine import build
from server.continuous_batching.engine.cuda_graphs import graph_sizes
from server.continuous_batching.engine.runner import PagedModelRunner
from server.continuous_batching.kernels import triton_norm
from server.continuous_batching.kernels.triton_backend import TritonKernels
from tests.continuous_batching.engines import small_llm
from tests.kernels.overlapped import PagedTorchAttention
from tests.models import tiny_llama

MAX_ROWS = 256
Variant = frozenset[tuple[str, Any]]


class Launches:
    """Stands in for a kernel and writes down which variants of it are asked for."""

    def __init__(self) -> None:
        self.seen: set[Variant] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Launches:
        return self

    def __call__(self, *tensors: Any, **constants: Any) -> None:
        self.seen.add(frozenset(constants.items()))


def launch(attention: TritonAttention, decodes: int) -> None:
    """Launch a step of so many decodes."""
    numbers = torch.zeros(decodes, dtype=torch.int32)
    attention.prepare(PagedBatch(decodes, numbers, numbers, torch.zeros((1, 128), dtype=torch.int32)))
    heads, kv_heads, head_dim = attention.shape.num_heads, attention.shape.num_kv_heads, 64
    query, key = torch.empty(decodes, heads, head_dim), torch.empty(decodes, kv_heads, head_dim)
    attention.forward(0, query, key, key)


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8, 16, 32])
def test_captured_sizes_compile_all_there_is(monkeypatch: pytest.MonkeyPatch, kv_heads: int) -> None:
    launches = Launches()
    monkeypatch.setattr(triton_decode, "_decode", launches)
    shape = AttentionShape(kv_heads, kv_heads, 64, 16, torch.float16)
    tables = SimpleNamespace(cos=torch.zeros(1, 64), sin=torch.zeros(1, 64))
    attention = TritonAttention(shape, tables, torch.empty(1, 1, 2, 16, kv_heads, 64))
    for size in graph_sizes(MAX_ROWS):
        launch(attention, size)
    captured = set(launches.seen)
    assert len({dict(variant)["SPLITS"] for variant in captured}) > 1
    for size in range(1, MAX_ROWS + 1):
        launch(attention, size)
    assert launches.seen == captured


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
@pytest.mark.parametrize("rows", [1, 2, 96])
def test_a_start_compiles_norms_for_any_number_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(build, "choose_attention", lambda *_: (PagedTorchAttention, "a test"))
    monkeypatch.setattr(build, "choose_kernels", lambda *_: (TritonKernels(), "a test"))
    llm = small_llm(tiny_llama(tmp_path, hidden=128, heads=2, kv_heads=1), beams=rows)
    runner, launches = llm.engine.runner, Launches()
    assert isinstance(runner, PagedModelRunner)
    monkeypatch.setattr(triton_norm, "_rms_norm", launches)
    monkeypatch.setattr(triton_norm, "_silu_mul", Launches())
    monkeypatch.setattr(triton_norm, "launch_options", lambda _, overlapped=True: {"PDL": overlapped})
    runner.warm_up(80)
    started = set(launches.seen)
    assert len(started) == 2
    layer = runner.model.layers[0]
    for tokens in range(2, 97):
        runner.kernels.norm_linear(torch.zeros(tokens, 128), layer.attention_norm, layer.attention.qkv)
    assert launches.seen == started
