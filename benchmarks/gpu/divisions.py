"""Finds how the work of a step of decodes is best divided:

    .venv/bin/python -m benchmarks.gpu.divisions SHAPE... [--rows 1,16,64,224]

Layers follow each other in a graph as they do in a model, because kernels load their first weights while the
previous one ends: what is fastest alone can be slower there. The GPU is kept busy, because many rows take it
to its limit of power, where its clocks are lower. Each run divides one part in another way; the others are as
the server has them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from itertools import pairwise, product
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.gpu.graph_time import captured
from benchmarks.gpu.layers import Layers
from benchmarks.gpu.products import Product
from server.layers.linear import Linear
from server.layers.spec import FeedForwardSpec
from server.ops.triton import layer_ops
from server.ops.triton.decode_attention import Tuning
from server.ops.triton.few_rows import MOST_ROWS, Cut, few_rows
from server.ops.triton.gated_product import gated_product
from server.ops.triton.layer_ops import TritonLayerOps
from server.quantization.gemv import Tiling, gemv, tiling
from utils.commands import with_interpreter

CUBLAS = "cuBLAS"
JOINED = "gate and up joined"
PARTS = ("attention", "qkv", "output", "gate-up", "down")
ONE_TOKEN = [
    Tuning(elements, programs, warps, stages=2, by_warps=False, registers=128 if warps == 4 else None)
    for elements, programs, warps in product((4096, 8192, 16384), (256, 512), (4, 8))
]
SEVERAL = [
    *(Tuning(4096, 512, by_warps=False, registers=registers) for registers in (96, 112, 128)),
    *(Tuning(8192, 512, stages=2, by_warps=False, registers=registers) for registers in (96, 128, 160)),
    *(Tuning(2048, programs, 1) for programs in (512, 1024)),
]
"""Ways to divide attention."""
NEVER = mock.Mock(return_value=False)
SECONDS = 2.0

Division = Tiling | Cut | Tuning | str | None


class Change(NamedTuple):
    """A part of the layers, and how it is divided; None: as the server does."""

    part: str
    division: Division


BASELINE = Change("baseline", None)


class Way:
    """All parts as the server has them but one."""

    def __init__(self, layers: Layers, change: Change) -> None:
        self._layers = layers
        self._change = change
        self._ops = TritonLayerOps()

    def launch(self) -> Tensor:
        """[rows, hidden]: what comes out of the last layer."""
        layers, division = self._layers, self._change.division
        layers.scene.attention.tuning = division if isinstance(division, Tuning) else None
        x = layers.x.clone()
        for number, linears in enumerate(layers.linears):
            attended = layers.attended(number, self._multiplied(linears, "qkv", x))
            x = self._multiplied(linears, "output", attended, x)
            x = self._multiplied(linears, "down", self._multiplied(linears, "gate-up", x), x)
        return x

    def _multiplied(
        self, linears: Mapping[str, Linear], part: str, x: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        ops, linear, norm = self._ops, linears[part], self._layers.norm
        division = self._change.division if self._change.part == part else None
        if isinstance(division, Tiling | Cut):
            gated = part == "gate-up"
            if isinstance(division, Tiling):
                weight = norm.weight if residual is None else None
                shape: dict[str, Any] = {"norm": weight, "eps": norm.eps, "shape": division}
                return gemv(x, linear.weight, gated=gated, residual=residual, **shape)
            x = ops.norm(x, norm) if residual is None else x
            return few_rows(x, linear.weight, gated=gated, residual=residual, cut=division)
        if division == JOINED:
            return gated_product(ops.norm(x, norm), linear.weight)
        without = mock.patch.multiple(layer_ops, few_rows_takes=NEVER, gated_product_takes=NEVER)
        with without if division == CUBLAS else nullcontext():
            if residual is not None:
                return ops.linear_add(x, linear, residual)
            if part == "gate-up":
                return ops.norm_feed_forward(x, norm, linear, FeedForwardSpec(len(linear.weight) // 2))
            return ops.norm_linear(x, norm, linear)


def changes(made: Sequence[Product], rows: int) -> Iterator[Change]:
    """Everything as it is, then what is worth a try."""
    yield BASELINE
    yield from (Change("attention", tuning) for tuning in (ONE_TOKEN if rows == 1 else SEVERAL))
    for each in made:
        if rows == 1:
            in_use = tiling(each.outputs, each.inputs, gated=each.gated)
            for found in tilings(each.inputs, gated=each.gated):
                if found != in_use and each.outputs % found.rows == 0:
                    yield Change(each.name, found)
            continue
        yield Change(each.name, CUBLAS)
        if each.gated and rows > 64:
            yield Change(each.name, JOINED)
        if rows <= MOST_ROWS:
            yield from (Change(each.name, cut) for cut in cuts(gated=each.gated))


def tilings(inputs: int, *, gated: bool) -> Iterator[Tiling]:
    """32 to 96 weights a thread in flight, and few columns without weights."""
    for columns, rows, warps in product((512, 1024, 2048, 4096), (1, 2, 4), (2, 4, 8)):
        tiles = -(-inputs // columns)
        if columns * tiles > 1.1 * inputs or columns < 128 * warps:
            continue
        for ahead in {1, 2, 3, min(tiles, 6)}:
            share = (2 if gated else 1) * rows * columns * ahead // (32 * warps)
            if ahead <= tiles and 32 <= share <= 96:
                yield Tiling(rows, columns, warps, ahead)


def cuts(*, gated: bool) -> Iterator[Cut]:
    """What one or two programs of a multiprocessor have room for, and some that are too large."""
    deep = ((64, 3), (64, 4), (64, 6), (128, 2), (128, 3), (128, 4), (256, 2), (256, 3))
    for (depth, stages), parts in product(deep, (1,) if gated else (1, 2, 4)):
        yield Cut(depth, stages, parts)


def compile_all(sizes: LlamaShape, rows: int) -> None:
    """Compile what will be measured, in as many processes as there are processors."""
    workers = max((os.cpu_count() or 2) - 2, 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(partial(_compile, sizes, rows, workers), range(workers)))


@torch.inference_mode()
def _compile(sizes: LlamaShape, rows: int, workers: int, worker: int) -> None:
    layers = Layers(sizes, rows, 512, 1)
    for change in [*changes(layers.products, rows)][worker::workers]:
        with suppress(OutOfResources):
            Way(layers, change).launch()


def lengths_about(context: int, rows: int) -> list[int]:
    """Tokens of contexts from half as many to half as many again, the longest first."""
    return [context * (3 * rows - 2 * row) // (2 * rows) if rows > 1 else context for row in range(rows)]


@torch.inference_mode()
def measure(sizes: LlamaShape, rows: int, context: int) -> dict[Change, float]:
    """Microseconds of a layer by change: medians of the second half of some seconds, in turns."""
    lengths = lengths_about(context, rows)
    layers = Layers(sizes, rows, max(lengths), sizes.layers)
    layers.place(lengths)
    graphs = {}
    for change in changes(layers.products, rows):
        with suppress(OutOfResources):
            graphs[change] = captured(Way(layers, change).launch)
    times: dict[Change, list[float]] = {change: [] for change in graphs}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        graphs[BASELINE].replay()  # the host launches what is timed meanwhile
        borders = [torch.cuda.Event(enable_timing=True) for _ in range(len(graphs) + 1)]
        borders[0].record()
        for graph, border in zip(graphs.values(), borders[1:], strict=True):
            graph.replay()
            border.record()
        torch.cuda.synchronize()
        for found, (begin, finish) in zip(times.values(), pairwise(borders), strict=True):
            found.append(1e3 * begin.elapsed_time(finish) / layers.count)
    return {change: statistics.median(found[len(found) // 2 :]) for change, found in times.items()}


def main() -> None:
    """Print for each part what is fastest, as a share of what is in use."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shapes", choices=SHAPES, nargs="+")
    parser.add_argument("--rows", type=lambda text: [int(each) for each in text.split(",")], default=[1])
    parser.add_argument("--context", type=int, default=384, help="tokens of a context, on average")
    arguments = parser.parse_args()
    for name, rows in product(arguments.shapes, arguments.rows):
        compile_all(SHAPES[name], rows)
        times = measure(SHAPES[name], rows, arguments.context)
        in_use = times[BASELINE]
        print(f"{name}, {rows} rows, contexts of {arguments.context}: {in_use:.2f} us a layer", flush=True)
        for part in PARTS:
            tried = [change for change in times if change.part == part]
            for change in sorted(tried, key=lambda change: times[change])[:4]:
                print(f"  {part:10} {times[change] / in_use:.3f}  {change.division}", flush=True)


if __name__ == "__main__":
    main()
