"""Kernels that start before their predecessor ends read nothing of it, nor of the last step, too early."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from server.device.triton_support import is_hopper, overlaps_launches
from server.ops.triton import decode_attention as triton_decode
from server.ops.triton import few_rows as triton_few_rows
from server.ops.triton.attention import TritonAttention
from server.ops.triton.decode_attention import PLAIN, SHARED, Tuning
from server.ops.triton.few_rows import few_rows
from server.quantization import gemv as triton_gemv
from server.quantization.gemv import gemv
from tests.ops.shapes import attention_shape
from tests.ops.triton import scenes
from tests.ops.triton.checks import HALF, relative_error

DEVICE = torch.device("cuda")
HEADS, KV_HEADS, HEAD_DIM, LAYERS, INNER = 8, 2, 64, 12, 8192
BEGIN, STEPS = 1500, 300


def steps_of(rows: int) -> tuple[Tensor, Tensor]:
    """(what each step gave, the cache afterwards): products with attention between them, as one graph."""
    torch.manual_seed(0)
    batch = scenes.paged_batch([BEGIN] * rows, [], 16, DEVICE)
    cache = torch.randn((batch.tables.numel(), LAYERS, 2, 16, KV_HEADS, HEAD_DIM), device=DEVICE).to(HALF)
    shape = attention_shape(HEADS, KV_HEADS, HEAD_DIM, 16, HALF, LAYERS)
    attention = TritonAttention(shape, [scenes.rotary_of(HEAD_DIM, HALF, DEVICE)], cache)
    attention.prepare(batch)
    width = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    inward = (torch.randn(LAYERS, width, INNER, device=DEVICE) * INNER**-0.5).to(HALF)
    outward = torch.randn(LAYERS, INNER, HEADS * HEAD_DIM, device=DEVICE).to(HALF)
    given = torch.randn(STEPS, rows, INNER, device=DEVICE).to(HALF)
    x = given[0].clone()
    multiplied = gemv if rows == 1 else few_rows

    def step() -> Tensor:
        y = x
        for layer in range(LAYERS):
            joint = multiplied(y, inward[layer]).view(rows, HEADS + 2 * KV_HEADS, HEAD_DIM)
            attended = attention.forward(layer, *torch.split(joint, [HEADS, KV_HEADS, KV_HEADS], 1))
            y = multiplied(attended, outward[layer])
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


MANY = PLAIN[max(PLAIN)]


@pytest.mark.parametrize("tuning", [SHARED, replace(SHARED, programs=1), MANY, replace(MANY, programs=1)])
def test_steps_are_those_of_kernels_that_wait(monkeypatch: pytest.MonkeyPatch, tuning: Tuning) -> None:
    if not overlaps_launches(DEVICE):
        pytest.skip("kernels start early on Hopper and later")
    monkeypatch.setattr(scenes, "TABLE_WIDTH", 2048)
    monkeypatch.setattr(triton_decode, "PLAIN", {0: tuning})
    compare_with_kernels_that_wait(monkeypatch, 1)


@pytest.mark.parametrize("rows", [3, 40, 100])
def test_steps_of_several_are_those_of_kernels_that_wait(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    if not is_hopper(DEVICE):
        pytest.skip("products of few rows are for Hopper")
    monkeypatch.setattr(scenes, "TABLE_WIDTH", 2048)
    compare_with_kernels_that_wait(monkeypatch, rows)
    assert not triton_few_rows._arrivals(DEVICE).any()


def compare_with_kernels_that_wait(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    answers, cache = steps_of(rows)
    for module in (triton_decode, triton_gemv, triton_few_rows):
        monkeypatch.setattr(module, "launch_options", lambda device, **_: {"PDL": False})
    expected, expected_cache = steps_of(rows)
    assert answers.isfinite().all()
    for answer, other in zip(answers, expected, strict=True):
        assert relative_error(answer, other) < 1e-2
    assert relative_error(cache, expected_cache) < 1e-3
