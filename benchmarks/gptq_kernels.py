"""Times the kernels for quantized weights against float ones, by rows: where each is the fastest.

    .venv/bin/python -m benchmarks.gptq_kernels --inputs 4096 --outputs 14336

`DENSE_ROWS` of `server/quantization/gptq/kernels/cpu.py` and `triton.py` are read off its table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from server.quantization.gptq.kernels import cpu, triton
from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.kernels.select import choose_kernels
from server.quantization.gptq.weight import QuantizedWeight
from utils.commands import with_interpreter


def random_weight(inputs: int, outputs: int, group_size: int, device: torch.device) -> QuantizedWeight:
    """A symmetric weight of random 4-bit codes."""
    shape = (inputs // group_size, outputs)
    return QuantizedWeight(
        bits=4,
        group_size=group_size,
        qweight=torch.randint(-(2**31), 2**31, (inputs // 8, outputs)).int().to(device),
        zeros=torch.full(shape, 8, dtype=torch.uint8, device=device),
        scales=(torch.rand(shape) * 0.01).half().to(device),
        order=None,
    )


def milliseconds(product: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Median time of a product; on a CPU the processor's time, which other processes do not add to."""
    times = []
    product()
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        began = clock()
        for _ in range(3):
            product()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((clock() - began) / 3 * 1e3)
    return statistics.median(times)


def measure(kernel: GPTQKernel, dense: Tensor, rows: int, repeats: int) -> tuple[float, float, float]:
    """(quantized product, dequantized first, float weight) for a number of rows, in milliseconds."""
    x = torch.randn(rows, kernel.inputs, device=dense.device).to(dense.dtype)
    module = cpu if isinstance(kernel, cpu.CpuKernel) else triton
    configured = module.DENSE_ROWS
    found = []
    try:
        for threshold in (rows + 1, 0):
            module.DENSE_ROWS = threshold
            found.append(milliseconds(lambda: kernel(x), dense.device, repeats))
    finally:
        module.DENSE_ROWS = configured
    found.append(milliseconds(lambda: torch.nn.functional.linear(x, dense), dense.device, repeats))
    return found[0], found[1], found[2]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=with_interpreter(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--outputs", type=int, default=8192)
    parser.add_argument("--group_size", type=int, default=128)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16, 24, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    weight = random_weight(options.inputs, options.outputs, options.group_size, device)
    kernel = choose_kernels(4, device, dtype).kernel_for(weight)
    dense = weight.dequantized(dtype).contiguous()
    kept = sum(tensor.nbytes for tensor in kernel.buffers())
    print(
        f"{kernel.name} on {device}, {torch.get_num_threads()} threads, {kept / dense.nbytes:.3f} of {dtype}"
    )
    print("rows  quantized  dequantized first  float  (ms)")
    for rows in options.rows:
        quantized, first, plain = measure(kernel, dense, rows, options.repeats)
        print(f"{rows:4}  {quantized:9.3f}  {first:17.3f}  {plain:5.3f}")


if __name__ == "__main__":
    main()
