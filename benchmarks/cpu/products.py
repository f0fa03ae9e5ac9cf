"""The products of a forward pass alone, by rows: ``.venv/bin/python -m benchmarks.cpu.products``.

For each number of rows: milliseconds of all products of a model, bytes of weights and operations a second,
the best of many calls. Each kind of product is timed on one matrix that is too large for the caches, as all
layers of the model one after the other are, and stands for its part of the model. Attention, norms and
Python are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.cpu.bandwidth import read_bandwidth
from benchmarks.machine import today
from server.layers.linear import Linear
from server.ops.cpu.build import build
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.structs import Matrix
from server.ops.cpu.variants import usable_variants
from server.ops.cpu.weights import PackedWeights
from utils.commands import with_interpreter

ROWS = (1, 2, 3, 4, 8, 16, 32, 128, 512)
PROMPT_ROWS = 64
"""From here on only the last row needs logits."""
MATRIX_BYTES = 160 << 20
PROMPT_BYTES = 24 << 20
"""Of the same matrix for prompts, which arithmetic bounds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the products of a model, which has it `times`."""

    name: str
    outputs: int
    inputs: int
    times: int


@dataclass(frozen=True, slots=True)
class Timed:
    """What all products of a model take."""

    rows: int
    milliseconds: float
    gigabytes: float
    """Of weights a second."""
    gigaflops: float
    parts: dict[str, float]
    """Milliseconds of each kind."""


def kinds_of(shape: LlamaShape) -> list[Kind]:
    """The products of a Llama."""
    hidden, size = shape.hidden, shape.hidden // shape.heads
    return [
        Kind("qkv", (shape.heads + 2 * shape.kv_heads) * size, hidden, shape.layers),
        Kind("out", hidden, hidden, shape.layers),
        Kind("up", 2 * shape.inner, hidden, shape.layers),
        Kind("down", hidden, shape.inner, shape.layers),
        Kind("head", shape.vocab, hidden, 1),
    ]


def best_seconds(
    library: NativeLibrary, matrix: Matrix, outputs: int, x: torch.Tensor, budget: float
) -> float:
    """Of a product with a packed matrix; the least in `budget` seconds, but of three calls at least."""
    best, calls, end = float("inf"), 0, time.perf_counter() + budget
    while calls < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        library.multiply(torch.bfloat16, matrix, outputs, x)
        best, calls = min(best, time.perf_counter() - began), calls + 1
    return best


def measure_kind(library: NativeLibrary, kind: Kind, budget: float) -> dict[int, float]:
    """Milliseconds of all products of a kind, by rows."""
    size = kind.outputs * kind.inputs * 2
    copies = -(-MATRIX_BYTES // size)
    layer = Linear(kind.inputs, kind.outputs * copies, dtype=torch.bfloat16, device=torch.device("cpu"))
    torch.nn.init.normal_(layer.weight)
    weights = PackedWeights(library, [layer])
    matrix = weights.pack(layer)
    found = {}
    for rows in ROWS:
        used = -(-PROMPT_BYTES // size) if rows >= PROMPT_ROWS else copies
        x = torch.randn(1 if kind.name == "head" and rows >= PROMPT_ROWS else rows, kind.inputs)
        seconds = best_seconds(library, matrix, kind.outputs * used, x, budget)
        found[rows] = seconds * kind.times / used * 1e3
    return found


def measure(library: NativeLibrary, shape: LlamaShape, budget: float) -> list[Timed]:
    """All numbers of rows for one model."""
    kinds = kinds_of(shape)
    times = {kind.name: measure_kind(library, kind, budget) for kind in kinds}
    found = []
    for rows in ROWS:
        parts = {name: by_rows[rows] for name, by_rows in times.items()}
        seconds = sum(parts.values()) / 1e3
        flops = sum(
            2.0
            * kind.outputs
            * kind.inputs
            * kind.times
            * (1 if kind.name == "head" and rows >= PROMPT_ROWS else rows)
            for kind in kinds
        )
        found.append(
            Timed(rows, seconds * 1e3, shape.bytes_per_token / seconds / 1e9, flops / seconds / 1e9, parts)
        )
    return found


def main() -> None:
    """Measure; print a table a model, write all figures."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    variants = {variant.name: variant for variant in usable_variants()}
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["125m", "500m"])
    parser.add_argument("--variant", choices=variants, default=next(iter(variants)))
    parser.add_argument("--budget", type=float, default=0.3, help="seconds for each figure")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local/cpu-products.json"))
    options = parser.parse_args()
    variant = variants[options.variant]
    library, threads = NativeLibrary(build(variant), variant), torch.get_num_threads()
    limit = read_bandwidth(threads) / 1e9
    print(f"{variant.name}, {threads} threads; plain reading: {limit:.1f} GB/s")
    report: dict[str, Any] = {
        "date": today(),
        "variant": variant.name,
        "threads": threads,
        "plain reading": limit,
    }
    for name in options.shapes:
        results = measure(library, SHAPES[name], options.budget)
        report[name] = [{field: getattr(one, field) for field in Timed.__slots__} for one in results]
        print(f"{name}, bfloat16\n  rows        ms    GB/s   GFLOP/s")
        for one in results:
            print(
                f"  {one.rows:4} {one.milliseconds:9.2f} {one.gigabytes:7.1f} {one.gigaflops:9.1f}",
                flush=True,
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
