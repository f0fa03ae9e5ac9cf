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
from benchmarks.gpu.graph_time import captured, replay_us
from server.layers.spec import AttentionSpec
from server.ops.paged_attention import PagedBatch
from server.ops.triton.decode_attention import DecodeAttention, Tuning
from server.quantization.gemv import Tiling, gemv, tiling
from utils.commands import with_interpreter

PARTS = ("attention", "qkv", "output", "gate_up", "down")
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
    qkv: Tensor
    output: Tensor
    norm: Tensor
    gate_up: Tensor
    down: Tensor


class Layers:
    """Layers of random weights, 8 GB at most, and the decode of one token behind a context.

    Args:
        sizes: of the model.
        most: layers.

    Attributes:
        count: layers.
        position: int32 [1], of the token, below `LENGTH`.
    """

    LENGTH: ClassVar[int] = 4_096

    def __init__(self, sizes: LlamaShape, most: int) -> None:
        hidden, dim = sizes.hidden, sizes.hidden // sizes.heads
        room = int(8e9 // (sizes.bytes_per_token / sizes.layers))
        self.count = min(sizes.layers, room, most)
        self._queries, self._keys = sizes.heads * dim, sizes.kv_heads * dim
        self._layers = [
            Layer(
                torch.ones(hidden, **FLOATS),
                0.02 * torch.randn(self._queries + 2 * self._keys, hidden, **FLOATS),
                0.02 * torch.randn(hidden, self._queries, **FLOATS),
                torch.ones(hidden, **FLOATS),
                0.02 * torch.randn(2 * sizes.inner, hidden, **FLOATS),
                0.02 * torch.randn(hidden, sizes.inner, **FLOATS),
            )
            for _ in range(self.count)
        ]
        width = self.LENGTH // 16
        self._heads = (sizes.heads, sizes.kv_heads, dim)
        self._spec = AttentionSpec(*self._heads, dim, dim**-0.5, rotary=None)
        self._attend = DecodeAttention(torch.randn(width, self.count, 2, 16, *self._heads[1:], **FLOATS))
        self.position = torch.zeros(1, dtype=torch.int32, device="cuda")
        row = torch.zeros(1, dtype=torch.int32, device="cuda")
        table = torch.randperm(width, device="cuda").int().view(1, width)
        self._batch = PagedBatch(1, row, self.position, table)
        self._x = torch.randn(1, hidden, **FLOATS)

    def launch(self, change: Change) -> Tensor:
        """[1, hidden]: what comes out of the last layer, one part of all divided as `change` says."""
        shapes = {change.part: change.division} if isinstance(change.division, Tiling) else {}
        self._attend.tuning = change.division if isinstance(change.division, Tuning) else None
        x = self._x.clone()
        for number, layer in enumerate(self._layers):
            qkv = gemv(x, layer.qkv, norm=layer.attention_norm, eps=1e-5, shape=shapes.get("qkv"))
            x = gemv(self._attended(number, qkv), layer.output, residual=x, shape=shapes.get("output"))
            inner = gemv(x, layer.gate_up, norm=layer.norm, eps=1e-5, gated=True, shape=shapes.get("gate_up"))
            x = gemv(inner, layer.down, residual=x, shape=shapes.get("down"))
        return x

    def _attended(self, number: int, qkv: Tensor) -> Tensor:
        heads, kv_heads, dim = self._heads
        query, key, value = qkv.split([self._queries, self._keys, self._keys], 1)
        found = torch.empty(len(qkv), heads, dim, **FLOATS)
        views = query.unflatten(1, (heads, dim)), *(x.unflatten(1, (kv_heads, dim)) for x in (key, value))
        self._attend(number, self._spec, None, self._batch, *views, found)
        return found.flatten(1)


def changes(sizes: LlamaShape) -> Iterator[Change]:
    """Everything as it is, then what is worth a try."""
    yield Change("baseline", None)
    yield from (Change("attention", tuning) for tuning in ATTENTION)
    hidden, dim = sizes.hidden, sizes.hidden // sizes.heads
    all_heads = (sizes.heads + 2 * sizes.kv_heads) * dim
    for part, outputs, inputs in (
        ("qkv", all_heads, hidden),
        ("output", hidden, sizes.heads * dim),
        ("gate_up", sizes.inner, hidden),
        ("down", hidden, sizes.inner),
    ):
        in_use = tiling(outputs, inputs, gated=part == "gate_up")
        found = [each for each in tilings(inputs, gated=part == "gate_up") if each != in_use]
        yield from (Change(part, each) for each in found if outputs % each.rows == 0)


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
    if max(arguments.contexts) >= Layers.LENGTH:
        parser.error(f"--contexts: at most {Layers.LENGTH - 1}")
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
