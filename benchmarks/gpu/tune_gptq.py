"""Finds tilings of products with 4-bit weights:
``.venv/bin/python -m benchmarks.gpu.tune_gptq SHAPE ROWS [ROWS …]``;
what it prints is what ``server.quantization.gptq.kernels.triton_product.tiling`` knows."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.checkpoints import SHAPES
from benchmarks.gptq_kernels import random_weight
from benchmarks.gpu.gptq import GROUP, layer_sizes
from benchmarks.gpu.graph_time import graph_us
from server.device.triton_support import gpu_of
from server.quantization.gptq.kernels.triton import TritonKernel
from server.quantization.gptq.kernels.triton_product import Tiling, product, stage_bytes, tiling
from utils.commands import with_interpreter

ROW_TILES = (16, 32, 64, 128, 256)
BITS = 4
ACCUMULATORS = 128
"""Sums that a thread can hold."""


def candidates(rows: int, shared: int) -> Iterator[Tiling]:
    """Tilings that fit `shared` bytes of a multiprocessor and waste no more than half of their rows."""
    usable = [tile for tile in ROW_TILES if tile < 2 * rows] or [16]
    for tile, outputs, stages, warps in itertools.product(usable[-2:], (64, 128, 256), (3, 4, 6), (4, 8)):
        fits = stages * stage_bytes(tile, outputs, BITS) <= shared
        if fits and tile * outputs <= ACCUMULATORS * 32 * warps and outputs >= 16 * warps:
            for parts in (1, 2, 4, 8):
                yield Tiling(tile, outputs, parts, stages, warps)


def measure(kernels: list[TritonKernel], x: Tensor, cut: Tiling) -> float:
    """Microseconds of a product."""

    def launch() -> None:
        for kernel in kernels:
            product(
                x, kernel.words, kernel.factors, kernel.bits, kernel.group_size, kernel.scales_dtype,
                arrivals=kernel.arrivals, symmetric=kernel.symmetric, cut=cut,
            )  # fmt: skip

    return graph_us(launch, len(kernels))


@torch.inference_mode()
def main() -> None:
    """For each product of a layer the best tilings, beside the one in use."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("rows", type=int, nargs="+")
    options = parser.parse_args()
    device = torch.device("cuda")
    gpu = gpu_of(device)
    for inputs, outputs in layer_sizes(SHAPES[options.shape]):
        copies = max(2, int(1.2e8 / (inputs * outputs / 2)))
        weights = (random_weight(inputs, outputs, GROUP, device) for _ in range(copies))
        kernels = [TritonKernel(weight, torch.bfloat16) for weight in weights]
        for rows in options.rows:
            x = torch.randn(rows, inputs, device=device, dtype=torch.bfloat16)
            in_use = tiling(rows, outputs, inputs, BITS, gpu)
            times = {cut: measure(kernels, x, cut) for cut in {in_use, *candidates(rows, gpu.shared)}}
            best = sorted(times, key=lambda cut: times[cut])[:3]
            told = ", ".join(f"{times[cut]:.1f} {cut}" for cut in best)
            print(f"{inputs} -> {outputs}, {rows} rows: {times[in_use]:.1f} {in_use}; {told}", flush=True)


if __name__ == "__main__":
    main()
