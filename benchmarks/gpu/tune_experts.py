"""How products of experts are best divided: ``.venv/bin/python -m benchmarks.gpu.tune_experts OUT.json``.

For a layer of each shape of `benchmarks.gpu.experts`: microseconds of its first and its last product, by the
rows that there are and the way to divide them, each launch with other experts. `few`: the kernels for few
tokens; `many`: those that sort tokens by expert. `steps`: the kernels of a decode step of a model with a few
such layers, and what each takes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu import experts as shapes
from benchmarks.gpu.graph_time import graph_us
from benchmarks.gpu.step_gaps import REPLAYS, kernels
from benchmarks.gpu.versions import versions
from server.layers.expert_stack import ExpertStack
from server.layers.microscaled import Microscaled
from server.ops.triton.experts import Tiling, inward, outward
from server.ops.triton.few_experts import Tile, few_inward, few_outward
from server.ops.triton.gates import SILU, Gate
from server.ops.triton.routing import assign
from utils.commands import with_interpreter

Launch = Callable[[], None]
SETS = 8
"""Choices of experts, one after another within a graph."""
LAYERS = 6
ROWS = (1, 4, 16, 64, 256)
FEW_ROWS = (1, 4)
FEW = [
    Tile(8, 512), Tile(4, 512), Tile(4, 1024), Tile(8, 256), Tile(16, 256), Tile(2, 1024), Tile(16, 128),
    Tile(8, 512, 8), Tile(8, 512, 4, 1), Tile(8, 256, 2), Tile(32, 128), Tile(4, 512, 2),
]  # fmt: skip
MANY = [
    Tiling(16, 64, 128, 4, 4), Tiling(16, 32, 256, 4, 3), Tiling(16, 64, 256, 4, 3),
    Tiling(16, 128, 64, 4, 4), Tiling(16, 128, 128, 4, 3), Tiling(16, 64, 64, 4, 6),
    Tiling(16, 128, 128, 8, 3), Tiling(16, 32, 128, 4, 5), Tiling(32, 64, 128, 4, 4),
    Tiling(32, 128, 128, 4, 3), Tiling(32, 128, 64, 4, 4), Tiling(32, 128, 128, 8, 3),
    Tiling(64, 64, 64, 4, 3), Tiling(64, 64, 128, 4, 3), Tiling(64, 128, 64, 8, 3),
    Tiling(64, 128, 128, 8, 2),
]  # fmt: skip


class Layer(NamedTuple):
    """A layer's experts.

    Attributes:
        gate_up, down: all matrices.
        used: experts of a token.
    """

    gate_up: Tensor | ExpertStack
    down: Tensor | ExpertStack
    used: int
    gate: Gate


def floats(count: int, outputs: int, inputs: int) -> Tensor:
    return torch.randn(count, outputs, inputs, device="cuda", dtype=torch.bfloat16) * 0.02


def codes(count: int, outputs: int, inputs: int) -> Microscaled:
    """MXFP4."""
    made = Microscaled(count, outputs, inputs, dtype=torch.bfloat16, device=torch.device("cuda"))
    made.blocks.random_(0, 256)
    made.scales.random_(118, 122)
    return made


LAYERS_OF: dict[str, Callable[[], Layer]] = {
    "qwen3-30b-a3b": lambda: Layer(floats(128, 1536, 2048), floats(128, 2048, 768), 8, SILU),
    "gpt-oss-20b": lambda: Layer(codes(32, 5760, 2880), codes(32, 2880, 2880), 4, Gate(1.702, 7.0)),
}


def products(layer: Layer, rows: int, few: bool) -> dict[str, tuple[Launch, Launch]]:
    """Way → launches of (the first, the last product), `SETS` of each."""
    count, inputs = layer.gate_up.shape[0], layer.gate_up.shape[2]
    device = torch.device("cuda")
    scores = torch.rand(SETS, rows, count, device=device)
    chosen = list(scores.topk(layer.used, -1).indices.to(torch.int32))
    shares = torch.full((rows, layer.used), 1 / layer.used, device=device)
    x = torch.randn(rows, inputs, device=device, dtype=torch.bfloat16)
    inner = torch.randn(rows * layer.used, layer.down.shape[2], device=device, dtype=torch.bfloat16)
    found = {}
    for tile in FEW if few else ():
        first = partial(few_inward, x, layer.gate_up, None, gate=layer.gate, tile=tile)
        last = partial(few_outward, inner, layer.down, None, shares=shares, tile=tile)
        found[str(tile)] = (one_by_one(first, chosen), one_by_one(last, chosen))
    for by in () if few else MANY:
        to = [assign(choice, count, by.rows) for choice in chosen]
        first = partial(inward, x, layer.gate_up, None, by=by)
        last = partial(outward, inner, layer.down, None, by=by, shares=shares)
        found[str(by)] = (one_by_one(first, to), one_by_one(last, to))
    return found


def one_by_one(product: Callable[[Any], Tensor], choices: Sequence[Any]) -> Launch:
    """Launches `product` for each of the choices."""

    def launch() -> None:
        for choice in choices:
            product(choice)

    return launch


def tune(layer: Layer, rows: int, few: bool) -> dict[str, Any]:
    """Way → microseconds of (the first, the last product), the fastest sum first."""
    ways = products(layer, rows, few)

    def failure(way: str) -> str:
        try:
            for launch in ways[way]:
                launch()
        except Exception as error:  # too large for this GPU
            return repr(error)
        return ""

    with ThreadPoolExecutor(12) as pool:  # compiles
        list(pool.map(failure, ways))
    torch.cuda.synchronize()
    failures = {way: failure(way) for way in ways}
    for way, error in failures.items():
        if error:
            print(f"  left out: {way}: {error[:90]}", flush=True)
    found = {
        way: [round(graph_us(launch, SETS), 1) for launch in launches]
        for way, launches in ways.items()
        if not failures[way]
    }
    return dict(sorted(found.items(), key=lambda item: sum(item[1])))


def steps(shape: str, directory: Path) -> dict[str, Any]:
    """Rows → kernel → (launches, microseconds) of a decode step."""
    llm = shapes.load(directory / shape, shape, layers=LAYERS)
    found: dict[str, Any] = {}
    for rows in ROWS:
        runs = kernels(llm, rows, 512)
        found[str(rows)] = {
            name[:60]: (len(times) / REPLAYS, round(sum(own for own, _ in times) / REPLAYS, 1))
            for name, times in sorted(runs.items(), key=lambda item: -sum(own for own, _ in item[1]))[:16]
        }
        print(f"{shape}, {rows} rows:", flush=True)
        for name, (launches, us) in found[str(rows)].items():
            print(f"  {launches:5.1f} {us:8.1f} us  {name}", flush=True)
    del llm
    torch.cuda.empty_cache()
    return found


def main() -> None:
    """Measure, and write what is there after each part."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--shapes", type=lambda names: names.split(","), default=list(LAYERS_OF))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--parts", type=lambda names: names.split(","), default=["steps", "few", "many"])
    options = parser.parse_args()
    result: dict[str, Any] = {"versions": versions()}
    for shape in options.shapes:
        found = result[shape] = {}
        if "steps" in options.parts:
            with tempfile.TemporaryDirectory() as directory:
                found["steps"] = steps(shape, Path(directory))
        layer = LAYERS_OF[shape]()
        for rows in options.rows:
            for part in ("few", "many"):
                if part not in options.parts or (part == "few" and rows not in FEW_ROWS):
                    continue
                tuned = found[f"{part}, {rows} rows"] = tune(layer, rows, part == "few")
                print(f"{shape}, {part}, {rows} rows:", flush=True)
                for way, times in list(tuned.items())[:4]:
                    print(f"  {times}  {way}", flush=True)
                options.out.write_text(json.dumps(result, indent=1) + "\n")
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
