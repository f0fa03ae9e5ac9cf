"""One token times weights in FP8, read at the memory's bandwidth and multiplied in float32.

At batch 1 a product is as fast as its weights can be read, and FP8 units would gain nothing; so the
activations stay floats. Norm, activation and residual ride along, as in `server.ops.triton.gemv`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two

_ROWS = 4
"""Weight rows that a program reads side by side, gates and ups together: 64 bytes a thread in flight."""


@triton.jit
def _tile(weight, n, k, K: tl.constexpr, WHOLE: tl.constexpr):
    """A tile of weight rows; they are used once, so the cache need not keep them."""
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    if WHOLE:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _times(value, scales, first, k, K: tl.constexpr, BLOCK: tl.constexpr):
    """`value`, times the scales of the blocks that hold weight row `first`."""
    if BLOCK > 0:
        at = scales + (first // BLOCK) * (K // BLOCK) + k // BLOCK
        value *= tl.load(at, mask=k < K, other=0.0)
    return value


@triton.jit
def _gemv(
    x, norm, weight, scales, bias, residual, y, eps,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs). GATED: rows n and n + N of the weight are gate and up of output n.

    BLOCK: a scale for so many outputs and inputs; 0: one for each output.
    """
    if PDL:
        gdc_launch_dependents()
    first = tl.program_id(0) * ROWS
    n = first + tl.arange(0, ROWS)
    k = tl.arange(0, TILE)
    w = _tile(weight, n, k, K, K % TILE == 0)
    if GATED:
        w_up = _tile(weight, n + N, k, K, K % TILE == 0)
    if PDL:
        gdc_wait()
    acc = tl.zeros([ROWS, TILE], tl.float32)
    acc_up = acc
    square = tl.zeros([TILE], tl.float32)
    for k0 in tl.static_range(0, K, TILE):
        kk = k0 + k
        value = tl.load(x + kk, mask=kk < K, other=0.0).to(tl.float32)
        if NORM:
            square += value * value
            value *= tl.load(norm + kk, mask=kk < K, other=0.0).to(tl.float32)
        if k0 > 0:
            w = _tile(weight, n, kk, K, K % TILE == 0)
            if GATED:
                w_up = _tile(weight, n + N, kk, K, K % TILE == 0)
        acc += w.to(tl.float32) * _times(value, scales, first, kk, K, BLOCK)[None, :]
        if GATED:
            acc_up += w_up.to(tl.float32) * _times(value, scales, first + N, kk, K, BLOCK)[None, :]
    shrink = 1.0
    if NORM:
        shrink = tl.rsqrt(tl.sum(square, 0) / K + eps)
    out = tl.sum(acc, 1) * shrink
    if BLOCK == 0:
        out *= tl.load(scales + n)
    if bias is not None:
        out += tl.load(bias + n).to(tl.float32)
    if GATED:
        up = tl.sum(acc_up, 1) * shrink
        if BLOCK == 0:
            up *= tl.load(scales + n + N)
        if bias is not None:
            up += tl.load(bias + n + N).to(tl.float32)
        out = out / (1.0 + tl.exp(-out)) * up
    if residual is not None:
        out += tl.load(residual + n).to(tl.float32)
    tl.store(y + n, out.to(y.dtype.element_ty))


def gemv(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    *,
    bias: Tensor | None = None,
    block: int | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """One token times a weight.

    Args:
        x: [1, inputs], contiguous.
        weight: float8 [outputs, inputs], contiguous; sizes are multiples of 16.
        scales: float32, one for each output, or [outputs / block, inputs / block].
        bias: [outputs].
        norm: weight [inputs] of an RMS norm with `eps` that `x` goes through before.
        gated: the weight stacks gate and up, each of half its rows; the result is silu(gate) · up.
        residual: [1, outputs], is added and then holds the result.

    Returns:
        [1, outputs] ([1, outputs / 2] if `gated`).
    """
    inputs = weight.shape[1]
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    rows = _ROWS // 2 if gated else _ROWS
    tile = next_power_of_two(inputs) if inputs <= 4096 else 2048
    y = residual
    if y is None:
        y = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    _gemv[(outputs // rows,)](
        x, norm, weight, scales, bias, residual, y, eps,
        N=outputs, K=inputs, ROWS=rows, TILE=tile, BLOCK=block or 0,
        NORM=norm is not None, GATED=gated,
        num_warps=min(max(tile // 512, 1), 8), **launch_options(x.device),
    )  # fmt: skip
    return y
