"""Bits and times of products in one order of sums, beside cuBLAS and the one-token product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import LlamaShape
from benchmarks.gpu.graph_time import graph_us
from benchmarks.gpu.products import Product, products
from server.ops.triton.fixed_product import product as fixed_product
from server.quantization.gemv import gemv

ROWS = (1, 2, 16, 33, 64, 65, 128, 200, 256, 257, 512, 700, 1025, 2048)
"""Numbers of rows that are compared: on both sides of borders between tiles."""
TIMED = (1, 16, 64, 128, 256, 2048, 8192)
EPS = 1e-5


class Weight:
    """One weight of a layer, or the head's, with rows to multiply.

    Attributes:
        error: of the product against float32, relative; large if it is wrong.
    """

    def __init__(self, product: Product) -> None:
        torch.manual_seed(1)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
        self.product = product
        self.weight = torch.randn(product.size, product.inputs, **options) * product.inputs**-0.5
        self.x = torch.randn(max(TIMED), product.inputs, **options)
        self.norm = torch.rand(product.inputs, **options) + 0.5

    def multiplied(self, x: Tensor, **options: Any) -> Tensor:
        y = torch.zeros(len(x), self.product.outputs, dtype=x.dtype, device="cuda")
        fixed_product(x, self.weight, y, gated=self.product.gated, **options)
        return y

    def check(self) -> dict[str, Any]:
        """What differs: numbers of rows, rows elsewhere, single rows; and how far off the product is."""
        whole = self.multiplied(self.x[: max(ROWS)])
        found: dict[str, Any] = {
            "rows": [n for n in ROWS if not torch.equal(self.multiplied(self.x[:n]), whole[:n])],
            "moved": not torch.equal(self.multiplied(self.x[5:70]), whole[5:70]),
            "alone": sum(
                not torch.equal(self.multiplied(self.x[n : n + 1]), whole[n : n + 1]) for n in range(64)
            ),
        }
        expected = self.x[: max(ROWS)].float() @ self.weight.float().t()
        if self.product.gated:
            gate, up = expected.chunk(2, -1)
            expected = torch.nn.functional.silu(gate) * up
        found["error"] = ((whole.float() - expected).norm() / expected.norm()).item()
        return found

    def times(self) -> dict[str, dict[str, float]]:
        """Microseconds by number of rows: this product, and what stands in its place otherwise."""
        copies = max(3, int(3e8 / self.weight.nbytes))  # together they do not fit the L2 cache
        weights = [self.weight.clone() for _ in range(copies)]

        def timed(launch: Callable[[Tensor], object]) -> float:
            return round(graph_us(lambda: [launch(weight) for weight in weights] and None, copies), 2)

        gated, found = self.product.gated, {}
        for rows in TIMED:
            if rows > 512 and self.product.name == "head":
                break  # never of a prompt's length
            x = self.x[:rows]
            y = torch.zeros(rows, self.product.outputs, dtype=x.dtype, device="cuda")
            joint = torch.empty(rows, len(self.weight), dtype=x.dtype, device="cuda")
            found[f"{rows}"] = {
                "own": timed(lambda w, x=x, y=y: fixed_product(x, w, y, gated=gated)),
                "cuBLAS": timed(lambda w, x=x, joint=joint: torch.mm(x, w.t(), out=joint)),
            }
        one, y = self.x[:1], torch.zeros(1, self.product.outputs, dtype=self.x.dtype, device="cuda")
        with_norm = {"norm": self.norm, "eps": EPS, "gated": gated}
        beside: dict[str, Any] = with_norm if self.product.norm else {"residual": y}
        found["1"]["gemv, fused"] = timed(lambda w: gemv(one, w, **beside))
        return found


def examine(shape: LlamaShape) -> dict[str, Any]:
    """Bits and times of every product of a model."""
    found = {}
    for product in products(shape):
        weight = Weight(product)
        found[product.name] = {"differ": weight.check(), "us": weight.times()}
        print(product.name, found[product.name]["differ"], flush=True)
        for rows, times in found[product.name]["us"].items():
            print(f"  {rows:>12} rows: {times}", flush=True)
    return found
