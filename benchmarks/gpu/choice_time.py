"""Time of choosing tokens alone: ``python -m benchmarks.gpu.choice_time [--vocab 32000,128256]``.

For each set of options and number of rows: microseconds on the GPU (a captured graph, replayed) and of the
host, beside torch's operators for the same where there are any.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.decoder import StepLogits
from server.continuous_batching.decoding.device_choice import DeviceChoice
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.decoding.processors import apply_filters, apply_processors
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.kernels.triton_beams import best_continuations

OPTIONS: dict[str, dict[str, float]] = {
    "none": {},
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 50},
    "both": {"top_k": 50, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "all": {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}


def choosers(table: RowTable, logits: Tensor) -> tuple[Callable[[], object], ...]:
    """Ways to choose a token for each line of `logits`: by the engine's kernels one by one, by those captured
    and replayed, by torch's operators."""
    lines = len(logits)
    rows, generated = np.arange(lines), np.full(lines, 9)
    placed = torch.arange(lines, dtype=torch.int32, device=logits.device)
    assert table.device_rows is not None
    choice = DeviceChoice(table, table.device_rows)
    one_by_one, replayed = StepLogits(logits, placed, placed), StepLogits(logits, placed, placed, placed)

    def torchs() -> Tensor:
        scores = logits.float()
        apply_processors(scores, table, rows, generated)
        return apply_filters(scores, table, rows).softmax(dim=-1).cumsum(dim=-1).argmax(dim=-1)

    return partial(choice.choose, one_by_one, rows, []), partial(choice.choose, replayed, rows, []), torchs


def gpu_us(choose: Callable[[], object], replays: int = 20) -> float:
    """Median microseconds of a call on the GPU."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        choose()
    times = []
    for _ in range(7):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / replays)
    return statistics.median(times)


def eager_us(choose: Callable[[], object], calls: int = 10) -> tuple[float, float]:
    """Median microseconds of a call: until the host has launched it, and until the GPU is done."""
    launched, done = [], []
    for _ in range(7):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            choose()
        launched.append(1e6 * (time.perf_counter() - begin) / calls)
        torch.cuda.synchronize()
        done.append(1e6 * (time.perf_counter() - begin) / calls)
    return statistics.median(launched), statistics.median(done)


def time_beams(logits: Tensor, counts: tuple[int, ...] = (4, 8, 16, 32, 64, 168)) -> None:
    """Print how long the best continuations of beams take, and through torch's operators."""
    running = torch.randn(len(logits), device=logits.device)

    def torchs(count: int) -> Tensor:
        scores = torch.log_softmax(logits.float(), dim=-1) + running[:, None]
        return torch.topk(scores, count, dim=-1).values

    for count in counts:
        own = gpu_us(partial(best_continuations, logits, running, count))
        other = gpu_us(partial(torchs, count))
        print(f"{count:4d} of each of {len(logits)} beams {own:8.1f} {other:10.1f}", flush=True)


@torch.inference_mode()
def main() -> None:
    """Print a table for each vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--vocab", type=lambda sizes: [int(s) for s in sizes.split(",")], default=[32000, 128256]
    )
    parser.add_argument("--rows", type=lambda sizes: [int(s) for s in sizes.split(",")], default=[1, 16, 256])
    arguments = parser.parse_args()
    device = torch.device("cuda")
    for vocab in arguments.vocab:
        torch.manual_seed(0)
        given = (3 * torch.randn(max(arguments.rows), vocab, device=device)).bfloat16()
        print(f"vocabulary of {vocab}, bfloat16; us on the GPU, of the host: launched one by one, replayed;")
        print("torch's operators from call to end")
        for name, options in OPTIONS.items():
            table = RowTable(len(given), vocab, device, DeviceRows(len(given), device))
            params = SamplingParams(do_sample=True, temperature=0.8, max_new_tokens=64, **options)
            for row in range(len(given)):
                table.assign(row, params, row, [1, 2, 3], [4, 5])
            assert table.device_rows is not None
            table.device_rows.flush()
            for lines in arguments.rows:
                one_by_one, replayed, torchs = choosers(table, given[:lines].clone())
                for choose in (one_by_one, replayed, torchs):
                    choose()
                device_us = gpu_us(one_by_one)
                (launch, _), (replay, _), (_, other) = map(eager_us, (one_by_one, replayed, torchs))
                print(
                    f"{name:>10} {lines:4d} rows {device_us:8.1f} {launch:8.1f} {replay:8.1f} {other:10.1f}",
                    flush=True,
                )
        time_beams(given)


if __name__ == "__main__":
    main()
