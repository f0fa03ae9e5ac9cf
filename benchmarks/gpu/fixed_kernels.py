"""Bits and times of products in one order of sums, beside cuBLAS and the one-token product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import LlamaShape
from benchmarks.gpu.skinny import Product, products
from benchmarks.gpu.tune_gemv import graph_us
from server.ops.triton.fixed_product import COUNTERS, decode_product, prompt_product
from server.ops.triton.gemv import gemv
from server.ops.triton.norm import rms_norm

ROWS = (1, 2, 16, 17, 33, 64, 65, 128, 200, 256, 257, 512)
"""Numbers of decodes that are compared: on both sides of borders between tiles."""
PROMPTS = (1, 63, 64, 65, 255, 257, 700, 2048)
TIMED = (1, 16, 64, 128, 256)
TIMED_PROMPTS = (256, 2048, 8192)
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
        size = product.outputs * (2 if product.gated else 1)
        self.weight = torch.randn(size, product.inputs, **options) * product.inputs**-0.5
        self.x = torch.randn(max(TIMED_PROMPTS), product.inputs, **options)
        self.norm = torch.rand(product.inputs, **options) + 0.5
        self.arrivals = torch.zeros(COUNTERS, dtype=torch.int32, device="cuda")

    def decoded(self, rows: slice, **options: Any) -> Tensor:
        x = self.x[rows]
        y = torch.zeros(len(x), self.product.outputs, dtype=x.dtype, device="cuda")
        decode_product(x, self.weight, y, self.arrivals, gated=self.product.gated, **options)
        return y

    def prompt(self, rows: slice) -> Tensor:
        x = self.x[rows]
        y = torch.empty(len(x), len(self.weight), dtype=x.dtype, device="cuda")
        prompt_product(x, self.weight, y)
        return y

    def check(self) -> dict[str, Any]:
        """What differs: numbers of rows, and whether a norm within the product does."""
        whole = self.decoded(slice(max(ROWS)))
        found: dict[str, Any] = {
            "decodes": [n for n in ROWS if not torch.equal(self.decoded(slice(n)), whole[:n])],
            "moved": not torch.equal(self.decoded(slice(5, 70)), whole[5:70]),
        }
        longest = self.prompt(slice(max(PROMPTS)))
        found["prompts"] = [n for n in PROMPTS if not torch.equal(self.prompt(slice(n)), longest[:n])]
        within = self.decoded(slice(1), norm=self.norm, eps=EPS)
        many = rms_norm(self.x[:64], self.norm, EPS, warps=4)
        y = torch.zeros(64, self.product.outputs, dtype=many.dtype, device="cuda")
        decode_product(many, self.weight, y, self.arrivals, gated=self.product.gated)
        found["norm within"] = not torch.equal(within, y[:1])
        expected = self.x[: max(PROMPTS)].float() @ self.weight.float().t()
        found["error"] = ((longest.float() - expected).norm() / expected.norm()).item()
        if not self.product.gated:
            count = max(ROWS)
            found["decode error"] = (
                (whole.float() - expected[:count]).norm() / expected[:count].norm()
            ).item()
        return found

    def times(self) -> dict[str, dict[str, float]]:
        """Microseconds by number of rows: this product, and what stands in its place otherwise."""
        copies = max(3, int(3e8 / self.weight.nbytes))  # together they do not fit the L2 cache
        weights = [self.weight.clone() for _ in range(copies)]

        def timed(launch: Callable[[Tensor], object]) -> float:
            return round(graph_us(lambda: [launch(weight) for weight in weights] and None, copies), 2)

        gated, found = self.product.gated, {}
        for rows in TIMED:
            x = self.x[:rows]
            y = torch.zeros(rows, self.product.outputs, dtype=x.dtype, device="cuda")
            joint = torch.empty(rows, len(self.weight), dtype=x.dtype, device="cuda")
            found[f"{rows}"] = {
                "own": timed(lambda w, x=x, y=y: decode_product(x, w, y, self.arrivals, gated=gated)),
                "cuBLAS": timed(lambda w, x=x, joint=joint: torch.mm(x, w.t(), out=joint)),
            }
        one, y = self.x[:1], torch.zeros(1, self.product.outputs, dtype=self.x.dtype, device="cuda")
        if self.product.norm:
            normed: dict[str, Any] = {"norm": self.norm, "eps": EPS, "gated": gated}
            found["1"]["own, norm"] = timed(lambda w: decode_product(one, w, y, self.arrivals, **normed))
            found["1"]["gemv"] = timed(lambda w: gemv(one, w, **normed))
        else:
            found["1"]["own, residual"] = timed(
                lambda w: decode_product(one, w, y, self.arrivals, residual=True)
            )
            found["1"]["gemv"] = timed(lambda w: gemv(one, w, residual=y))
        for rows in TIMED_PROMPTS:
            if self.product.name == "head":
                break  # never of a prompt's length
            x = self.x[:rows]
            joint = torch.empty(rows, len(self.weight), dtype=x.dtype, device="cuda")
            found[f"prompt {rows}"] = {
                "own": timed(lambda w, x=x, joint=joint: prompt_product(x, w, joint)),
                "cuBLAS": timed(lambda w, x=x, joint=joint: torch.mm(x, w.t(), out=joint)),
            }
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
