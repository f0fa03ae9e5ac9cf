"""Finds the tiling of the one-token product for each weight of models:
``.venv/bin/python -m benchmarks.gpu.tune_gemv SHAPE...``; what it prints is what
`server.quantization.gemv.tiling` knows.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import product

import torch

from benchmarks.checkpoints import SHAPES
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


def measure(outputs: int, inputs: int, *, gated: bool, norm: bool) -> None:
    """Print the best tilings of one weight, beside the one in use and cuBLAS."""
    floats = {"device": "cuda", "dtype": torch.bfloat16}
    size = (2 if gated else 1) * outputs
    copies = max(4, int(3e8 / (2 * size * inputs)))  # together they do not fit the L2 cache
    weights = [torch.randn(size, inputs, **floats) * inputs**-0.5 for _ in range(copies)]
    x, scale, y = (torch.randn(1, n, **floats) for n in (inputs, inputs, size))
    options = {"norm": scale if norm else None, "residual": None if gated or norm else y}

    def chain(shape: Tiling) -> Callable[[], None]:
        def launch() -> None:
            for weight in weights:
                gemv(x, weight, gated=gated, eps=1e-5, shape=shape, **options)

        return launch

    in_use = tiling(outputs, inputs, gated=gated)
    assert in_use is not None
    times = {shape: graph_us(chain(shape), copies) for shape in {in_use, *candidates(inputs, outputs)}}
    cublas = graph_us(lambda: [torch.mm(x, w.t(), out=y) for w in weights] and None, copies)
    best = sorted(times, key=lambda shape: times[shape])[:3]
    terabytes = 2e-6 * size * inputs
    print(
        f"{size:6d} x {inputs:5d} gated={gated:d} norm={norm:d}: in use {in_use} {times[in_use]:.2f} us "
        f"({terabytes / times[in_use]:.2f} TB/s), cuBLAS alone {cublas:.2f}; best "
        + ", ".join(f"{shape} {times[shape]:.2f}" for shape in best),
        flush=True,
    )


def main() -> None:
    """Measure every weight of a shape."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shapes", choices=SHAPES, nargs="+")
    for name in parser.parse_args().shapes:
        s = SHAPES[name]
        print(name, flush=True)
        head = s.hidden // s.heads
        measure((s.heads + 2 * s.kv_heads) * head, s.hidden, gated=False, norm=True)
        measure(s.hidden, s.heads * head, gated=False, norm=False)
        measure(s.inner, s.hidden, gated=True, norm=True)
        measure(s.hidden, s.inner, gated=False, norm=False)
        measure(s.vocab, s.hidden, gated=False, norm=True)


if __name__ == "__main__":
    main()
