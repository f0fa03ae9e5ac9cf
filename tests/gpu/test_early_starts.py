"""Kernels that start before their predecessor ends read nothing of it, nor of the last step, too early."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from server.continuous_batching.attention import triton_decode
from server.continuous_batching.attention.base import AttentionShape
from server.continuous_batching.attention.triton_backend import TritonAttention
from server.continuous_batching.kernels import triton_gemv
from server.continuous_batching.kernels.triton_gemv import gemv
from server.continuous_batching.kernels.triton_support import overlaps_launches
from tests.kernels import test_triton_attention as paged
from tests.kernels.conftest import HALF, relative_error

DEVICE = torch.device("cuda")
HEADS, KV_HEADS, HEAD_DIM, LAYERS, INNER = 8, 2, 64, 12, 8192
BEGIN, STEPS = 1500, 300


def steps_of_one_sequence() -> tuple[Tensor, Tensor]:
    """(what each step gave, the cache afterwards): products with attention between them, as one graph."""
    torch.manual_seed(0)
    batch = paged.paged_batch([BEGIN], [], 16, DEVICE)
    cache = torch.randn((batch.tables.numel(), LAYERS, 2, 16, KV_HEADS, HEAD_DIM), device=DEVICE).to(HALF)
    shape = AttentionShape(HEADS, KV_HEADS, HEAD_DIM, 16, HALF)
    attention = TritonAttention(shape, paged.rotary_of(HEAD_DIM, HALF, DEVICE), cache)
    attention.prepare(batch)
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    inward = (torch.randn(LAYERS, width, INNER, device=DEVICE) * INNER**-0.5).to(HALF)
    outward = torch.randn(LAYERS, INNER, HEADS * HEAD_DIM, device=DEVICE).to(HALF)
    given = torch.randn(STEPS, 1, INNER, device=DEVICE).to(HALF)
    x = given[0].clone()

    def step() -> Tensor:
        y = x
        for layer in range(LAYERS):
            joint = gemv(y, inward[layer]).view(1, HEADS + 2 * KV_HEADS, HEAD_DIM)
            attended = attention.forward(layer, *torch.split(joint, [HEADS, KV_HEADS, KV_HEADS], 1))
            y = gemv(attended, outward[layer])
        return y

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    answers = []
    for number in range(STEPS):
        x.copy_(given[number])
        batch.positions.fill_(BEGIN + number)
        graph.replay()
        answers.append(y.clone())
    assert not attention._attend_decodes._arrivals.any()
    return torch.cat(answers), cache


@pytest.mark.parametrize("programs", [1, triton_decode._PROGRAMS])
def test_steps_are_those_of_kernels_that_wait(monkeypatch: pytest.MonkeyPatch, programs: int) -> None:
    if not overlaps_launches(DEVICE):
        pytest.skip("kernels start early on Hopper and later")
    monkeypatch.setattr(paged, "TABLE_WIDTH", 2048)
    monkeypatch.setattr(triton_decode, "_PROGRAMS", programs)
    answers, cache = steps_of_one_sequence()
    for module in (triton_decode, triton_gemv):
        monkeypatch.setattr(module, "launch_options", lambda device: {"PDL": False})
    expected, expected_cache = steps_of_one_sequence()
    assert answers.isfinite().all()
    for answer, other in zip(answers, expected, strict=True):
        assert relative_error(answer, other) < 1e-2
    assert relative_error(cache, expected_cache) < 1e-3
