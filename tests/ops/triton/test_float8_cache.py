"""Attention over keys and values in FP8, beside float64 over what is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from server.layers.spec import AttentionSpec
from server.ops.attention import AttentionShape
from server.ops.triton import decode_attention as triton_decode
from server.ops.triton.attention import TritonAttention
from server.ops.triton.decode_attention import Tuning
from tests.float8 import rounding
from tests.ops.shapes import attention_shape, attention_spec
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.scenes import attend_over, paged_batch, reference, rotary_of, rotated, share

pytestmark = [
    pytest.mark.usefixtures(rounding.__name__),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*"),  # of pieces that have no tokens
]
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FLOAT8 = torch.float8_e4m3fn


def check(
    device: torch.device,
    dtype: torch.dtype,
    spec: AttentionSpec,
    decodes: list[int],
    *,
    scaled: bool = True,
    shares: list[tuple[int, int]] | None = None,
) -> None:
    """New tokens are stored rounded, and attend to what is stored, themselves included.

    Args:
        shares: what decodes begin with, as of `share`.
    """
    num_heads, kv_heads, head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    batch = paged_batch(decodes, [(0, 5), (33, 70)], 16, device)
    if shares is not None:
        share(batch, shares, 16)
    scales = torch.ones(2, 2, kv_heads, device=device)
    if scaled:
        scales.uniform_(0.005, 0.02)
    by_block = scales[:, :, None, :, None]
    cache = torch.randn(batch.tables.numel(), 2, 2, 16, kv_heads, head_dim, device=device)
    cache = (cache / by_block).clamp(-448, 448).to(FLOAT8)
    untouched = cache[:, 0].clone()
    joint = torch.randn(len(batch.rows), num_heads + 2 * kv_heads, head_dim, device=device).to(dtype)
    query, key, value = torch.split(joint, [num_heads, kv_heads, kv_heads], 1)
    rotary = rotary_of(head_dim, dtype, device)
    before, turned = (cache[:, 1].float() * by_block[1]).clone(), rotated(query, rotary, batch)
    floats = [x.float() for x in (query, key, value)]

    sinks = torch.randn(num_heads, device=device).to(dtype) if spec.sinks else None
    shape = AttentionShape((spec,) * 2, 16, dtype, cache_scales=scales)
    backend = TritonAttention(shape, [rotary], cache)
    backend.prepare(batch)
    attended = backend.forward(1, query, key, value, sinks).view(len(batch.rows), num_heads, head_dim)

    assert torch.equal(cache[:, 0].view(torch.uint8), untouched.view(torch.uint8))
    now = (cache[:, 1].float() * by_block[1]).cpu()
    _, stored = reference(*floats, rotary, before, batch)
    assert relative_error(now, stored) < 0.03  # the rounding of FP8
    expected = attend_over(turned, now, batch, spec, sinks)
    assert relative_error(attended, expected) < TOLERANCE[dtype] * (1 if spec.softcap is None else 3)


@pytest.mark.parametrize(
    ("dtype", "scaled", "heads"),
    [(torch.float32, True, (4, 2, 64)), (HALF, False, (6, 2, 96)), (HALF, True, (4, 2, 64))],
)
def test_mixed_steps(
    device: torch.device, dtype: torch.dtype, scaled: bool, heads: tuple[int, int, int]
) -> None:
    check(device, dtype, attention_spec(*heads), [0, 15, 16, 70], scaled=scaled)


@pytest.mark.parametrize("fields", [{}, {"window": 50, "sinks": True}, {"softcap": 2.0, "sinks": True}])
@pytest.mark.parametrize("shares", [None, [(1, 0), (2, 16), (3, 48), (1, 0), (4, 64)]])
def test_contexts_in_many_pieces_and_tiles(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    shares: list[tuple[int, int]] | None,
) -> None:
    decodes = [0, 31, 32, 50, 49, 48, 33, 64, 65, 130, 199]
    for programs in (1, 4096):
        monkeypatch.setattr(triton_decode, "FLOAT8", {0: Tuning(2048, programs, warps=2)})
        check(device, HALF, attention_spec(4, 2, 64, **fields), decodes, shares=shares)


def test_what_is_too_large_becomes_the_greatest(device: torch.device) -> None:
    batch = paged_batch([3], [(0, 2)], 16, device)
    cache = torch.zeros(batch.tables.numel(), 1, 2, 16, 1, 64, device=device).to(FLOAT8)
    joint = torch.full((len(batch.rows), 3, 64), 3.0, device=device)
    query, key, value = joint.unbind(1)
    shape = attention_shape(1, 1, 64, 16, torch.float32, layers=1)
    scales = torch.full((1, 2, 1), 1e-3, device=device)
    backend = TritonAttention(
        replace(shape, cache_scales=scales), [rotary_of(64, torch.float32, device)], cache
    )
    backend.prepare(batch)
    attended = backend.forward(0, *(x.unsqueeze(1) for x in (query, key, value)))
    assert cache.float().abs().max() == 448
    assert attended.isfinite().all() and relative_error(attended[1:], torch.full((2, 64), 0.448)) < 1e-5
