"""Steps with prompts launch their decodes as captured steps do: no kernel is compiled while serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.layers.spec import FeedForwardSpec
from server.layers.weights import ExpertsWeights
from server.ops.layer_ops import LayerOps
from server.ops.paged_attention import PagedBatch
from server.ops.triton import attention as triton_attention
from server.ops.triton import decode_attention as triton_decode
from server.ops.triton import gates as triton_gates
from server.ops.triton import norm as triton_norm
from server.ops.triton.attention import TritonAttention
from server.ops.triton.experts import Tiling, tiling_of
from server.ops.triton.layer_ops import TritonLayerOps
from server.quantization import gemv as triton_gemv
from server.worker.decode_graphs import graph_sizes
from server.worker.runner import PagedModelRunner
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import PagedTorchAttention, compute_with
from tests.models.small_models import MODELS, save
from tests.ops.shapes import attention_shape

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


def launch(attention: TritonAttention, decodes: int, redone: int = 0) -> None:
    """Launch a step of `decodes` decodes."""
    numbers = torch.zeros(decodes, dtype=torch.int32)
    tables = torch.zeros((1, 128), dtype=torch.int32)
    attention.prepare(PagedBatch(decodes, numbers, numbers, tables, redone=redone))
    heads, kv_heads, head_dim = attention.shape.num_heads, attention.shape.num_kv_heads, 64
    query, key = torch.empty(decodes, heads, head_dim), torch.empty(decodes, kv_heads, head_dim)
    attention.forward(0, query, key, key)


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("float8", [False, True])
def test_captured_sizes_compile_all_there_is(
    monkeypatch: pytest.MonkeyPatch, kv_heads: int, float8: bool
) -> None:
    launches = Launches()
    monkeypatch.setattr(triton_decode, "decode_by_warps", launches)
    monkeypatch.setattr(triton_decode, "decode", launches)
    shape = attention_shape(kv_heads, kv_heads, 64, 16, torch.float16)
    tables = SimpleNamespace(cos=torch.zeros(1, 64), sin=torch.zeros(1, 64))
    cache = torch.zeros(1, 1, 2, 16, kv_heads, 64)
    if float8:
        shape = replace(shape, cache_scales=torch.ones(1, 2, kv_heads))
        cache = cache.to(torch.float8_e4m3fn)
    attention = TritonAttention(shape, [tables], cache)
    for size in graph_sizes(MAX_ROWS):
        launch(attention, size)
    captured = set(launches.seen)
    assert len({dict(variant)["SPLITS"] for variant in captured}) > 1
    for size in range(1, MAX_ROWS + 1):
        launch(attention, size)
    assert launches.seen == captured
    monkeypatch.setattr(triton_decode, "launch_options", lambda _, overlapped=True: {"PDL": overlapped})
    monkeypatch.setattr(triton_attention, "rotate_and_store", lambda *_, **__: None)
    launches.seen.clear()
    for halvings in range((2 * MAX_ROWS).bit_length()):  # those of `PagedModelRunner.warm_up`
        launch(attention, 2 * MAX_ROWS >> halvings, redone=2 * MAX_ROWS >> halvings)
    started = {variant for variant in launches.seen if not dict(variant)["PDL"]}
    launches.seen.clear()
    for size in range(1, 2 * MAX_ROWS + 1):
        launch(attention, size, redone=min(size, MAX_ROWS))
    assert {variant for variant in launches.seen if not dict(variant)["PDL"]} == started


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the real thing")
@pytest.mark.parametrize("rows", [1, 2, 96])
def test_a_start_compiles_norms_for_any_number_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    layer_ops = TritonLayerOps()
    compute_with(monkeypatch, PagedTorchAttention, layer_ops)
    llm = small_llm(tiny_llama(tmp_path, hidden=128, heads=2, kv_heads=1), beams=rows)
    runner, launches = llm.engine.worker.runner, Launches()
    assert isinstance(runner, PagedModelRunner)
    monkeypatch.setattr(triton_norm, "_rms_norm", launches)
    monkeypatch.setattr(triton_gates, "_gate_mul", Launches())
    monkeypatch.setattr(triton_gemv, "_gemv", Launches())
    monkeypatch.setattr(triton_norm, "launch_options", lambda _, overlapped=True: {"PDL": overlapped})
    runner.warm_up(80)
    started = set(launches.seen)
    assert len(started) == 2
    layer = runner.model.layers[0]
    for tokens in range(2, 97):
        layer_ops.norm_linear(torch.zeros(tokens, 128), layer.attention_norm, layer.attention.qkv)
    assert launches.seen == started


class NotingOps(LayerOps):
    """Computes no experts, and writes down how their products would be divided."""

    def __init__(self) -> None:
        self.seen: set[Tiling] = set()

    def chosen_experts(
        self, x: Tensor, chosen: Tensor, shares: Tensor, weights: ExpertsWeights, spec: FeedForwardSpec
    ) -> Tensor:
        self.seen.add(tiling_of(chosen.numel() / len(weights.down), weights.down))
        return torch.zeros_like(x)


def test_a_start_compiles_products_of_experts_for_prompts_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops, longest = NotingOps(), 1_300
    compute_with(monkeypatch, PagedTorchAttention, ops)
    path = save(tmp_path, *MODELS["mixtral-window-40-even"])
    runner = small_llm(path, beams=4, max_length=longest).engine.worker.runner
    assert isinstance(runner, PagedModelRunner)
    ops.seen.clear()
    runner.warm_up(longest)
    experts = runner.model.layers[0].experts
    assert experts is not None
    each = 2 / len(experts.down)  # experts of a token, of those that there are
    assert ops.seen == {tiling_of(each * tokens, experts.down) for tokens in range(1, longest + 1)}
    assert len(ops.seen) > 2
