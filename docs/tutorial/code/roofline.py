"""Chapter 1: this machine's roofline, and where forward passes of the demo model lie under it.

.venv/bin/python -m docs.tutorial.code.roofline
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from docs.tutorial.code.common import DEMO, table
from docs.tutorial.code.cost import SHAPES
from docs.tutorial.steps.model import Llama, attention


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` runs, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def forward(model: Llama, rows: int, new: int, context: int) -> Callable[[], object]:
    """A forward pass of `new` tokens in each of `rows` sequences that hold `context` tokens already."""
    cache = torch.randn(2, rows, context, model.kv_heads, model.dim)
    mask = torch.ones(new, context + new, dtype=torch.bool).tril(context)
    tokens, positions = torch.ones(rows * new, dtype=torch.long), torch.arange(context, context + new)

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        fresh = torch.stack((key, value)).view(2, rows, new, model.kv_heads, model.dim)
        keys, values = torch.cat((cache, fresh), dim=2)
        return attention(query.view(rows, new, model.heads, model.dim), keys, values, mask).flatten(0, 1)

    ends = torch.arange(1, rows + 1) * new - 1
    return lambda: model.forward(tokens, positions.repeat(rows), attend, ends)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=2048, help="side of the matrices that are multiplied")
    args = parser.parse_args(argv)
    square = torch.randn(args.size, args.size)
    large = torch.randn(16 * args.size, args.size)
    compute = 2 * args.size**3 / seconds(lambda: square @ square, args.repeats)
    bandwidth = large.nbytes / seconds(large.sum, args.repeats)
    print(
        f"{torch.get_num_threads()} threads, float32: {compute / 1e9:.0f} Gflop/s, {bandwidth / 1e9:.1f} GB/s"
    )
    print(f"ridge: {compute / bandwidth:.0f} flop/byte; above it arithmetic is the bound, below it memory")
    model, shape = Llama(DEMO), replace(SHAPES["demo"], bytes=4)
    rows = []
    for name, batch, new, context in (
        ("decode, 1 row", 1, 1, 256),
        ("decode, 16 rows", 16, 1, 256),
        ("prompt, 512 tokens", 1, 512, 0),
    ):
        flops = shape.flops(batch * new, context + new // 2)
        moved = shape.traffic(batch * new, batch * (context or new))
        floor = max(flops / compute, moved / bandwidth)
        measured = seconds(forward(model, batch, new, context), args.repeats)
        bound = "arithmetic" if flops / compute > moved / bandwidth else "memory"
        rows.append([name, f"{flops / moved:.1f}", bound, f"{floor * 1e3:.2f}", f"{measured * 1e3:.2f}"])
    table(["forward pass", "flop/byte", "bound by", "floor ms", "measured ms"], rows)


if __name__ == "__main__":
    main()
