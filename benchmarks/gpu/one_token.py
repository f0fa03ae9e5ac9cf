"""Finds how the work of one token is best divided: ``.venv/bin/python -m benchmarks.gpu.one_token SHAPE...``.

Layers follow each other in a graph as they do in a model, because each kernel loads its first weights while
the previous one ends: a tiling that is fastest alone can be slower there. Each run changes the tiling of one
part; the others are as `server.quantization.gemv.tiling` and `server.ops.triton.decode_attention` say.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.gpu.decode_scene import DecodeScene
from benchmarks.gpu.graph_time import captured, replay_us
from benchmarks.gpu.skinny import Product, products
from server.ops.triton.decode_attention import Tuning
from server.quantization.gemv import Tiling, gemv, tiling
from utils.commands import with_interpreter

PARTS = ("attention", "qkv", "output", "gate-up", "down")
ATTENTION = [
    Tuning(elements, programs, warps, stages=2, by_warps=False)
    for elements, programs, warps in product((4096, 8192, 16384), (256, 512), (4, 8))
]
FLOATS: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
TURNS = 5


class Change(NamedTuple):
    """A part of the layers, and how it is divided; None: the default."""

    part: str
    division: Tiling | Tuning | None


class Layer(NamedTuple):
    """Weights of a layer."""

    attention_norm: Tensor
    norm: Tensor
    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor


class Layers:
    """Layers of random weights, 8 GB at most, and the decode of one token behind a context.

    Args:
        sizes: of the model.
        most: layers.

    Attributes:
        count: layers.
        position: int32 [1], tokens before the new one, `LONGEST` at most.
    """

    LONGEST: ClassVar[int] = 4_064

    def __init__(self, sizes: LlamaShape, most: int) -> None:
        room = int(8e9 // (sizes.bytes_per_token / sizes.layers))
        self.count = min(sizes.layers, room, most)
        weights = _products(sizes)
        self._layers = [
            Layer(
                *torch.ones(2, sizes.hidden, **FLOATS),
                *(0.02 * torch.randn(each.size, each.inputs, **FLOATS) for each in weights),
            )
            for _ in range(self.count)
        ]
        dim = sizes.hidden // sizes.heads
        self._heads = (sizes.heads, dim), (sizes.kv_heads, dim), (sizes.kv_heads, dim)
        self._scene = DecodeScene(sizes, 1, self.LONGEST, layers=self.count)
        self.position = self._scene.batch.positions
        self._x = torch.randn(1, sizes.hidden, **FLOATS)

    def launch(self, change: Change) -> Tensor:
        """[1, hidden]: what comes out of the last layer, one part of all divided as `change` says."""
        shapes = {change.part: change.division} if isinstance(change.division, Tiling) else {}
        self._scene.attention.tuning = change.division if isinstance(change.division, Tuning) else None
        x = self._x.clone()
        for number, layer in enumerate(self._layers):
            qkv = gemv(x, layer.qkv, norm=layer.attention_norm, eps=1e-5, shape=shapes.get("qkv"))
            x = gemv(self._attended(number, qkv), layer.output, residual=x, shape=shapes.get("output"))
            inner = gemv(x, layer.gate_up, norm=layer.norm, eps=1e-5, gated=True, shape=shapes.get("gate-up"))
            x = gemv(inner, layer.down, residual=x, shape=shapes.get("down"))
        return x

    def _attended(self, number: int, qkv: Tensor) -> Tensor:
        parts = qkv.split([heads * dim for heads, dim in self._heads], 1)
        query, *new = (part.unflatten(1, heads) for part, heads in zip(parts, self._heads, strict=True))
        found = torch.empty(query.shape, **FLOATS)
        self._scene.attend(number, query, *new, found)
        return found.flatten(1)


def _products(sizes: LlamaShape) -> list[Product]:
    """Those of a layer."""
    return [each for each in products(sizes) if each.name in PARTS]


def changes(sizes: LlamaShape) -> Iterator[Change]:
    """Everything as it is, then what is worth a try."""
    yield Change("baseline", None)
    yield from (Change("attention", tuning) for tuning in ATTENTION)
    for each in _products(sizes):
        in_use = tiling(each.outputs, each.inputs, gated=each.gated)
        for found in tilings(each.inputs, gated=each.gated):
            if found != in_use and each.outputs % found.rows == 0:
                yield Change(each.name, found)


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


def compile_all(sizes: LlamaShape) -> None:
    """Compile what will be measured, in as many processes as there are processors."""
    wanted, workers = [*changes(sizes)], max((os.cpu_count() or 2) - 2, 1)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(_compile, [sizes] * workers, [wanted[worker::workers] for worker in range(workers)]))


@torch.inference_mode()
def _compile(sizes: LlamaShape, wanted: Sequence[Change]) -> None:
    layers = Layers(sizes, 1)
    for change in wanted:
        layers.launch(change)


@torch.inference_mode()
def measure(sizes: LlamaShape, contexts: Sequence[int]) -> dict[int, dict[Change, float]]:
    """Microseconds of a layer by context and change, each the median of turns."""
    layers = Layers(sizes, sizes.layers)
    graphs = {change: captured(partial(layers.launch, change)) for change in changes(sizes)}
    found = {}
    for context in contexts:
        layers.position.fill_(context)
        times: dict[Change, list[float]] = {change: [] for change in graphs}
        for _ in range(TURNS):
            for change, graph in graphs.items():
                times[change].append(replay_us(graph, layers.count))
        found[context] = {change: statistics.median(each) for change, each in times.items()}
    return found


def main() -> None:
    """Print for each part what is fastest, as a share of what is in use."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shapes", choices=SHAPES, nargs="+")
    parser.add_argument(
        "--contexts", type=lambda text: [int(each) for each in text.split(",")], default=[384]
    )
    arguments = parser.parse_args()
    if max(arguments.contexts) > Layers.LONGEST:
        parser.error(f"--contexts: at most {Layers.LONGEST}")
    for name in arguments.shapes:
        compile_all(SHAPES[name])
        for context, times in measure(SHAPES[name], arguments.contexts).items():
            in_use = times[Change("baseline", None)]
            print(f"{name}, context {context}: {in_use:.2f} us a layer", flush=True)
            for part in PARTS:
                tried = [change for change in times if change.part == part]
                for change in sorted(tried, key=lambda change: times[change])[:4]:
                    print(f"  {part:10} {times[change] / in_use:.3f}  {change.division}", flush=True)


if __name__ == "__main__":
    main()
