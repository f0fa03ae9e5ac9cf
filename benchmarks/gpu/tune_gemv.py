"""Finds the tiling of the one-token product for each weight of models:
``.venv/bin/python -m benchmarks.gpu.tune_gemv SHAPE...``; what it prints is what
`server.quantization.gemv.tiling` knows.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch

from benchmarks.checkpoints import SHAPES, LlamaShape
from server.quantization.gemv import Tiling, gemv, tiling
from utils.commands import with_interpreter


def graph_us(launch: Callable[[], None], launches: int, replays: int = 10) -> float:
    """Median microseconds of a launch, within a graph of `launches` of them."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        launch()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            launch()
        times = []
        for _ in range(4):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(replays):
                graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / replays * 1e3 / launches)
    return statistics.median(times)


def candidates(inputs: int, outputs: int) -> list[Tiling]:
    """Those worth a try: 64 to 128 bytes of weights a thread in flight, and few columns without weights."""
    found = []
    for tile, rows, warps, ahead in product((512, 1024, 2048, 4096), (1, 2, 4, 8), (2, 4, 8), (1, 2, 4)):
        tiles, share = -(-inputs // tile), rows * tile * ahead // (32 * warps)
        fits = ahead <= tiles <= 16 and tile * tiles <= 1.1 * inputs and outputs % rows == 0
        if fits and 32 <= share <= 64:
            found.append(Tiling(rows, tile, warps, ahead))
    return found


class Product(NamedTuple):
    """A product of one token, as a layer has it.

    Attributes:
        outputs, inputs: of the weight; with a gate, as many outputs of the gate beside them.
        gated: gate and up projection are one.
        norm: the token is normalized first; without, and without a gate, a residual is added.
    """

    outputs: int
    inputs: int
    gated: bool
    norm: bool

    @property
    def size(self) -> int:
        return (2 if self.gated else 1) * self.outputs

    @property
    def weight_bytes(self) -> int:
        return 2 * self.size * self.inputs

    def tilings(self) -> set[Tiling]:
        """Those to try, that in use among them."""
        in_use = tiling(self.outputs, self.inputs, gated=self.gated)
        assert in_use is not None
        return {in_use, *candidates(self.inputs, self.outputs)}

    def launcher(self, copies: int) -> Callable[[Tiling | None], None]:
        """A function that multiplies one token by `copies` different weights, one after the other."""
        floats = {"device": "cuda", "dtype": torch.bfloat16}
        weights = [torch.randn(self.size, self.inputs, **floats) for _ in range(copies)]
        x, scale, y = (torch.randn(1, n, **floats) for n in (self.inputs, self.inputs, self.size))
        residual = None if self.gated or self.norm else y

        def launch(shape: Tiling | None) -> None:
            """By cuBLAS where there is no tiling, and without what is fused in."""
            for weight in weights:
                if shape is None:
                    torch.mm(x, weight.t(), out=y)
                else:
                    norm = scale if self.norm else None
                    gemv(x, weight, gated=self.gated, eps=1e-5, shape=shape, norm=norm, residual=residual)

        return launch


def compile_all(products: Sequence[Product]) -> None:
    """Compile what will be measured, in as many processes as there are processors."""
    wanted = [(each, shape) for each in products for shape in each.tilings()]
    workers = max((os.cpu_count() or 2) - 2, 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(_compile, [wanted[worker::workers] for worker in range(workers)]))


def _compile(wanted: Sequence[tuple[Product, Tiling]]) -> None:
    for each, shape in wanted:
        each.launcher(1)(shape)


def measure(each: Product) -> dict[str, Any]:
    """Microseconds of the tiling in use, of the fastest ones and of cuBLAS."""
    copies = max(4, int(6e8 / each.weight_bytes))  # together they do not fit the L2 cache
    launch = each.launcher(copies)
    times = {shape: graph_us(partial(launch, shape), copies) for shape in each.tilings()}
    in_use = tiling(each.outputs, each.inputs, gated=each.gated)
    best = sorted(times, key=lambda shape: times[shape])[:5]
    return {
        "in use": (
            str(in_use),
            round(times[in_use], 2),
            f"{1e-6 * each.weight_bytes / times[in_use]:.2f} TB/s",
        ),
        "cuBLAS alone": round(graph_us(partial(launch, None), copies), 2),
        "best": {str(shape): round(times[shape], 2) for shape in best},
    }


def products_of(shape: LlamaShape) -> list[Product]:
    """Those of a layer, then the output layer."""
    width = shape.hidden // shape.heads
    return [
        Product((shape.heads + 2 * shape.kv_heads) * width, shape.hidden, gated=False, norm=True),
        Product(shape.hidden, shape.heads * width, gated=False, norm=False),
        Product(shape.inner, shape.hidden, gated=True, norm=True),
        Product(shape.hidden, shape.inner, gated=False, norm=False),
        Product(shape.vocab, shape.hidden, gated=False, norm=True),
    ]


def main() -> None:
    """Measure every weight of the shapes, each once."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shapes", choices=SHAPES, nargs="+")
    wanted = dict.fromkeys(each for name in parser.parse_args().shapes for each in products_of(SHAPES[name]))
    compile_all([*wanted])
    for each in wanted:
        print(each, measure(each), flush=True)


if __name__ == "__main__":
    main()
