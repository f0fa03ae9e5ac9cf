"""Products of a few rows, cuBLAS beside a candidate in Triton:
``.venv/bin/python -m benchmarks.gpu.skinny SHAPE``.

The candidate has the norm, SiLU·mul and the residual inside, as the one-token product has; cuBLAS is
timed alone and with the kernels around it. What is printed decides whether the server gets the kernel.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.gpu.graph_time import graph_us
from server.device.triton_support import launch_options, next_power_of_two
from server.ops.triton.gates import gate_mul
from server.ops.triton.norm import rms_norm
from utils.commands import with_interpreter


@triton.jit
def _skinny(
    x, norm, weight, residual, y, eps, rows, N, K,
    ROW_TILE: tl.constexpr, OUTPUTS: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, RESIDUAL: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (tile of outputs). GATED: rows n and n + N of the weight are gate and up of output n."""
    if PDL:
        gdc_launch_dependents()
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tl.arange(0, ROW_TILE)
    k = tl.arange(0, TILE)
    at = weight + n[:, None].to(tl.int64) * K + k[None, :]
    at_up = at + N.to(tl.int64) * K
    w = tl.load(at, eviction_policy="evict_first")  # the first tile does not wait for the kernel in front
    if GATED:
        w_up = tl.load(at_up, eviction_policy="evict_first")
    if PDL:
        gdc_wait()
    x_at = x + m[None, :] * K + k[:, None]
    valid = (m < rows)[None, :]
    value = tl.load(x_at, mask=valid, other=0.0)
    square = tl.zeros([ROW_TILE], tl.float32)
    if NORM:
        wide = value.to(tl.float32)
        square += tl.sum(wide * wide, 0)
        value = (wide * tl.load(norm + k).to(tl.float32)[:, None]).to(value.dtype)
    out = tl.dot(w, value)
    if GATED:
        up = tl.dot(w_up, value)
    for k0 in tl.range(TILE, K, TILE, num_stages=STAGES):
        w = tl.load(at + k0, eviction_policy="evict_first")
        value = tl.load(x_at + k0, mask=valid, other=0.0)
        if NORM:
            wide = value.to(tl.float32)
            square += tl.sum(wide * wide, 0)
            value = (wide * tl.load(norm + k0 + k).to(tl.float32)[:, None]).to(value.dtype)
        out = tl.dot(w, value, out)
        if GATED:
            w_up = tl.load(at_up + k0, eviction_policy="evict_first")
            up = tl.dot(w_up, value, up)
    if NORM:
        scale = tl.rsqrt(square / K + eps)[None, :]
        out *= scale
        if GATED:
            up *= scale
    if GATED:
        out = out / (1.0 + tl.exp(-out)) * up
    y_at = m[None, :] * N + n[:, None]
    if RESIDUAL:
        out += tl.load(residual + y_at, mask=valid, other=0.0).to(tl.float32)
    tl.store(y + y_at, out.to(y.dtype.element_ty), mask=valid)


@dataclass(frozen=True, slots=True)
class Tiling:
    """Weight rows of a program, columns of a tile, warps, tiles in flight."""

    outputs: int
    columns: int
    warps: int
    stages: int

    def fits(self, rows: int, *, gated: bool) -> bool:
        """Whether the tiles in flight fit into a multiprocessor's shared memory."""
        lines = self.outputs * (2 if gated else 1) + row_tile(rows)
        return 2 * self.stages * self.columns * lines <= 200_000


TILINGS = [
    Tiling(16, 128, 4, 6), Tiling(16, 256, 4, 4), Tiling(16, 256, 4, 6),
    Tiling(32, 128, 4, 4), Tiling(32, 128, 4, 6), Tiling(32, 256, 4, 3),
    Tiling(64, 64, 4, 6), Tiling(64, 128, 4, 4), Tiling(64, 128, 8, 3),
]  # fmt: skip


def row_tile(rows: int) -> int:
    """Rows that the matrix units are given, padding included."""
    return max(next_power_of_two(rows), 16)


def skinny(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    tiling: Tiling,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    residual: bool = False,
) -> None:
    """A few tokens times a weight; the operands are those of ``kernels.triton_gemv.gemv``.

    Args:
        x: [rows, inputs], contiguous; `inputs` a multiple of the tiling's columns.
        weight: [outputs, inputs], contiguous; `outputs` (half of them if `gated`) of its outputs.
        y: [rows, outputs] ([rows, outputs / 2] if `gated`), contiguous; is filled.
        residual: `y` holds what is added.
    """
    rows, inputs = x.shape
    outputs = y.shape[1]
    _skinny[(outputs // tiling.outputs,)](
        x, norm if norm is not None else x, weight, y, y, eps, rows, outputs, inputs,
        ROW_TILE=row_tile(rows), OUTPUTS=tiling.outputs, TILE=tiling.columns, STAGES=tiling.stages,
        NORM=norm is not None, GATED=gated, RESIDUAL=residual,
        num_warps=tiling.warps, **launch_options(x.device),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """One of a layer's products, or the head's."""

    name: str
    outputs: int
    inputs: int
    norm: bool = False
    gated: bool = False

    @property
    def size(self) -> int:
        """Rows of the weight."""
        return self.outputs * (2 if self.gated else 1)


def products(shape: LlamaShape) -> list[Product]:
    """Those of a model."""
    head = shape.hidden // shape.heads
    return [
        Product("qkv", (shape.heads + 2 * shape.kv_heads) * head, shape.hidden, norm=True),
        Product("output", shape.hidden, shape.heads * head),
        Product("gate-up", shape.inner, shape.hidden, norm=True, gated=True),
        Product("down", shape.hidden, shape.inner),
        Product("head", shape.vocab, shape.hidden, norm=True),
    ]


def measure(product: Product, rows: int) -> None:
    """Print what a product takes at that many rows."""
    options = {"device": "cuda", "dtype": torch.bfloat16}
    size, inputs = product.size, product.inputs
    copies = max(3, int(3e8 / (2 * size * inputs)))  # together they do not fit the L2 cache
    weights = [torch.randn(size, inputs, **options) * inputs**-0.5 for _ in range(copies)]
    x, norm = torch.randn(rows, inputs, **options), torch.randn(inputs, **options)
    y, joint = torch.randn(rows, product.outputs, **options), torch.empty(rows, size, **options)

    def around(weight: Tensor) -> None:  # as the server does it
        if not product.norm:
            y.addmm_(x, weight.t())
        elif product.gated:
            gate_mul(torch.mm(rms_norm(x, norm, 1e-5), weight.t(), out=joint))
        else:
            torch.mm(rms_norm(x, norm, 1e-5), weight.t(), out=joint)

    def time(launch: Callable[[Tensor], object]) -> float:
        return graph_us(lambda: [launch(weight) for weight in weights] and None, copies)

    fused = {"norm": norm if product.norm else None, "gated": product.gated, "residual": not product.norm}
    times = {
        tiling: time(lambda weight, tiling=tiling: skinny(x, weight, y, tiling, eps=1e-5, **fused))
        for tiling in TILINGS
        if tiling.fits(rows, gated=product.gated)
        and product.outputs % tiling.outputs == inputs % tiling.columns == 0
    }
    best, terabytes = min(times, key=lambda tiling: times[tiling]), 2e-6 * size * inputs
    found = (
        ("cuBLAS", time(lambda weight: torch.mm(x, weight.t(), out=joint))),
        ("with neighbours", time(around)),
    )
    print(
        f"{product.name:8} {rows:2} rows: "
        + ", ".join(
            f"{name} {us:.2f} us ({terabytes / us:.2f} TB/s)"
            for name, us in (*found, ("candidate", times[best]))
        )
        + f" {best}",
        flush=True,
    )


def main() -> None:
    """Measure every product of a shape at some numbers of rows."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument(
        "--rows", type=lambda names: [int(n) for n in names.split(",")], default=[2, 4, 8, 16, 32]
    )
    arguments = parser.parse_args()
    for product in products(SHAPES[arguments.shape]):
        for rows in arguments.rows:
            measure(product, rows)


if __name__ == "__main__":
    main()
