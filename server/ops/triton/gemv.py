"""Products of one token: weights read at the memory's bandwidth, the neighbours fused in.

At batch 1 a product is as fast as its weights can be read. Each program loads its first tile of
weights before it waits for the kernel in front (programmatic dependent launch), so that memory never
falls idle between kernels; norm, activation and residual ride along.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from server.device.triton_support import launch_options, next_power_of_two


@triton.jit
def _tile(weight, n, k, K: tl.constexpr, WHOLE: tl.constexpr):
    """A tile of weight rows in float32; they are used once, so the cache need not keep them."""
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    if WHOLE:
        return tl.load(at, eviction_policy="evict_first")
    return tl.load(at, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _gemv(
    x, norm, weight, residual, y, eps,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs). GATED: rows n and n + N of the weight are gate and up of output n."""
    if PDL:
        gdc_launch_dependents()
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
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
        acc += w.to(tl.float32) * value[None, :]
        if GATED:
            acc_up += w_up.to(tl.float32) * value[None, :]
    out = tl.sum(acc, 1)
    if NORM:
        scale = tl.rsqrt(tl.sum(square, 0) / K + eps)
        out *= scale
    if GATED:
        up = tl.sum(acc_up, 1)
        if NORM:
            up *= scale
        out = out / (1.0 + tl.exp(-out)) * up
    if RESIDUAL:
        out += tl.load(residual + n).to(tl.float32)
    tl.store(y + n, out.to(y.dtype.element_ty))


def tiling(outputs: int, inputs: int, *, gated: bool) -> tuple[int, int, int] | None:
    """(weight rows a program, columns a tile, warps), None: such a weight is not taken.

    From `benchmarks.gpu.tune_gemv` on an H100: 32 to 64 weights a thread in flight are enough to keep
    its memory busy, and tiles that leave no thread without a column.
    """
    if inputs <= 2048:
        rows, tile, warps = (2 if gated else 4), next_power_of_two(inputs), 4
    elif inputs <= 4096:
        rows, tile, warps = (1 if gated else 2), next_power_of_two(inputs), 8
    else:
        rows, tile, warps = (2 if gated else 4), 2048, 8
    while rows > 1 and outputs % rows:
        rows //= 2
    return (rows, tile, warps) if inputs % 16 == 0 and inputs <= 32768 else None


def gemv(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One token times a weight.

    Args:
        x: [1, inputs], contiguous.
        weight: [outputs, inputs], contiguous.
        norm: weight [inputs] of an RMS norm with `eps` that `x` goes through before.
        gated: the weight stacks gate and up, each of half its rows; the result is silu(gate) · up.
        residual: [1, outputs], is added and then holds the result.
        out: takes the result instead of new memory.

    Returns:
        [1, outputs] ([1, outputs / 2] if `gated`).
    """
    inputs = weight.shape[1]
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    shape = tiling(outputs, inputs, gated=gated)
    assert shape is not None
    rows, tile, warps = shape
    y = residual if residual is not None else out
    if y is None:
        y = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
    _gemv[(outputs // rows,)](
        x, norm if norm is not None else x, weight, y, y, eps,
        N=outputs, K=inputs, ROWS=rows, TILE=tile,
        NORM=norm is not None, GATED=gated, RESIDUAL=residual is not None,
        num_warps=warps, **launch_options(x.device),
    )  # fmt: skip
    return y
