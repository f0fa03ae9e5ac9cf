"""The products of a forward pass alone, by rows: ``.venv/bin/python -m benchmarks.cpu.products``.

For each number of rows: milliseconds of all products of a model, bytes of weights and operations a second,
the best of many calls. Each kind of product is timed on one matrix that is too large for the caches, as all
layers of the model one after the other are, and stands for its part of the model. Attention, norms and
Python are left out. ``--weights`` takes codes too, GPTQ of 4 bits in groups of 128 or a type of GGUF, with
activations in bfloat16 or (``--arithmetic int8``) rounded to bytes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.cpu.bandwidth import read_bandwidth
from benchmarks.machine import today
from server.layers.codes import CodesForm, CodesMatrix, SmallCodes
from server.layers.linear import Linear
from server.ops.backend import Arithmetic
from server.ops.cpu.build import build
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.rounded import BITS as ROUNDED_BITS
from server.ops.cpu.structs import Matrix
from server.ops.cpu.variants import usable_variants
from server.ops.cpu.weights import PackedWeights
from server.quantization.gguf.codes import FORMS
from utils.commands import with_interpreter

ROWS = (1, 2, 3, 4, 8, 16, 32, 128, 512)
PROMPT_ROWS = 64
"""From here on only the last row needs logits."""
MATRIX_BYTES = 160 << 20
PROMPT_WEIGHTS = 12 << 20
"""Of the same matrix for prompts, which arithmetic bounds."""
CODES = {"int4": CodesForm(4, 128)} | FORMS
"""What weights can be besides bfloat16."""


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


class RandomCodes(Linear):
    """A layer of random codes."""

    dense = False

    def __init__(self, form: CodesForm, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 0, dtype=torch.bfloat16, device=torch.device("cpu"))
        self._form, self._inputs, self._outputs = form, inputs, outputs

    def codes_forms(self) -> list[tuple[CodesForm, int, int]]:
        return [(self._form, self._outputs, self._inputs)]

    def small_codes(self) -> Iterator[CodesMatrix]:
        yield CodesMatrix(self._form, self._outputs, self._take)

    def _take(self, outputs: Tensor) -> SmallCodes:
        form = self._form
        size = (len(outputs), self._inputs // form.group_size)
        codes = torch.randint(2**form.bits, (len(outputs), self._inputs), dtype=torch.uint8)
        dtype = {"float": torch.float32, "half": torch.float16, "fine": torch.int8}[form.scales]
        scales, offsets, coarse = torch.ones(size, dtype=dtype), None, None
        if form.offsets != "none":
            offsets = torch.ones(size, dtype=torch.int8 if form.offsets == "zeros" else dtype)
        if form.scales == "fine":
            coarse = torch.ones(2, size[0], size[1] // form.unit, dtype=torch.float16)
        return SmallCodes(codes, scales, offsets, coarse)


def layer_of(weights: str, inputs: int, outputs: int) -> Linear:
    """A layer with random weights of that form."""
    if weights in CODES:
        return RandomCodes(CODES[weights], inputs, outputs)
    layer = Linear(inputs, outputs, dtype=torch.bfloat16, device=torch.device("cpu"))
    torch.nn.init.normal_(layer.weight)
    return layer


def measure_kind(
    library: NativeLibrary, kind: Kind, weights: str, arithmetic: Arithmetic, budget: float
) -> dict[int, float]:
    """Milliseconds of all products of a kind, by rows."""
    bits = CODES[weights].bits if weights in CODES else 16 if arithmetic == "exact" else ROUNDED_BITS
    copies = -(-MATRIX_BYTES // (kind.outputs * kind.inputs * bits // 8))
    layer = layer_of(weights, kind.inputs, kind.outputs * copies)
    packed = PackedWeights(library, [layer], arithmetic=arithmetic)
    matrix = packed.pack(layer)
    found = {}
    for rows in ROWS:
        used, computed = copies, rows
        if rows >= PROMPT_ROWS:
            used = min(copies, -(-PROMPT_WEIGHTS // (kind.outputs * kind.inputs)))
            computed = 1 if kind.name == "head" else rows
        x = torch.randn(computed, kind.inputs)
        seconds = best_seconds(library, matrix, kind.outputs * used, x, budget)
        found[rows] = seconds * kind.times / used * 1e3
    return found


def measure(
    library: NativeLibrary, shape: LlamaShape, weights: str, arithmetic: Arithmetic, budget: float
) -> list[Timed]:
    """All numbers of rows for one model."""
    kinds = kinds_of(shape)
    times = {kind.name: measure_kind(library, kind, weights, arithmetic, budget) for kind in kinds}
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
    parser.add_argument("--weights", nargs="+", choices=["bfloat16", *CODES], default=["bfloat16"])
    parser.add_argument("--arithmetic", choices=get_args(Arithmetic), default="exact")
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
        "arithmetic": options.arithmetic,
    }
    for name, weights in itertools.product(options.shapes, options.weights):
        results = measure(library, SHAPES[name], weights, options.arithmetic, options.budget)
        report[f"{name} {weights}"] = [asdict(one) for one in results]
        print(f"{name}, {weights}, {options.arithmetic}\n  rows        ms    GB/s   GFLOP/s")
        for one in results:
            print(
                f"  {one.rows:4} {one.milliseconds:9.2f} {one.gigabytes:7.1f} {one.gigaflops:9.1f}",
                flush=True,
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
