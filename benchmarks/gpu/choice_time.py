"""Time of choosing tokens alone: ``python -m benchmarks.gpu.choice_time [--out FILE.json]``.

For each vocabulary, set of options and number of rows, in microseconds: what the kernels take on the GPU
(captured and replayed back to back), what the host takes to launch them one by one and to replay them, and
what torch's operators for the same take from call to end. For beams: the kernel beside torch's operators.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.tune_gemv import graph_us
from benchmarks.gpu.versions import versions
from server.continuous_batching.decoding.device_choice import DeviceChoice
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.decoding.processors import apply_filters, apply_processors
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.decoding.step_logits import StepLogits
from server.continuous_batching.kernels.triton_beams import best_continuations

OPTIONS: dict[str, dict[str, float]] = {
    "none": {},
    "top-p": {"top_p": 0.9},
    "top-k": {"top_k": 50},
    "both": {"top_k": 50, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.1, "frequency_penalty": 0.2},
    "all": {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2},
}
VOCABULARIES = (32_000, 128_256)
ROWS = (1, 16, 256)
CANDIDATES = (4, 8, 16, 32, 64, 168)
REPEATS = 7
CALLS = 10

Figures = dict[str, float | str]


def table_of(options: dict[str, float], vocab: int, device: torch.device) -> RowTable:
    """Rows that sample with `options`."""
    device_rows = DeviceRows(max(ROWS), device)
    table = RowTable(max(ROWS), vocab, device, device_rows)
    params = SamplingParams(do_sample=True, temperature=0.8, max_new_tokens=64, **options)
    for row in range(max(ROWS)):
        table.assign(row, params, row, [1, 2, 3], [4, 5])
    device_rows.flush()
    return table


def time_choice(table: RowTable, logits: Tensor) -> Figures:
    """Choosing a token for each line of `logits`."""
    lines = len(logits)
    rows, generated = np.arange(lines), np.full(lines, 9)
    placed = torch.arange(lines, dtype=torch.int32, device=logits.device)
    assert table.device_rows is not None
    choose = DeviceChoice(table, table.device_rows).choose
    launch = partial(choose, StepLogits(logits, placed, placed), rows, [])
    replay = partial(choose, StepLogits(logits, placed, placed, placed), rows, [])

    def by_torch() -> Tensor:
        scores = logits.float()
        apply_processors(scores, table, rows, generated)
        return apply_filters(scores, table, rows).softmax(dim=-1).cumsum(dim=-1).argmax(dim=-1)

    return {
        "rows": lines,
        "gpu": graph_us(launch, 1, replays=30),
        "host_launching": call_us(launch, wait=False),
        "host_replaying": call_us(replay, wait=False),
        "torch": call_us(by_torch, wait=True),
    }


def call_us(call: Callable[[], object], *, wait: bool) -> float:
    """Median microseconds of the host in a call, or until the GPU is done."""
    call()
    times = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        if wait:
            torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - begin) / CALLS)
    return statistics.median(times)


def time_beams(logits: Tensor, count: int) -> Figures:
    """The best continuations of as many beams as there are lines."""
    running = torch.randn(len(logits), device=logits.device)

    def by_torch() -> Tensor:
        scores = torch.log_softmax(logits.float(), dim=-1) + running[:, None]
        return torch.topk(scores, count, dim=-1).values

    own = partial(best_continuations, logits, running, count)
    return {
        "beams": len(logits),
        "candidates": count,
        "gpu": graph_us(own, 1),
        "torch": graph_us(by_torch, 1),
    }


@torch.inference_mode()
def main() -> None:
    """Print the figures, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda")
    results: list[Figures] = []

    def note(vocab: int, figures: Figures) -> None:
        results.append({"vocabulary": vocab, **figures})
        print(*(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in results[-1].items()))

    for vocab in VOCABULARIES:
        torch.manual_seed(0)
        logits = (3 * torch.randn(max(ROWS), vocab, device=device)).bfloat16()
        for name, options in OPTIONS.items():
            table = table_of(options, vocab, device)
            for rows in ROWS:
                note(vocab, {"options": name, **time_choice(table, logits[:rows].clone())})
        for count in CANDIDATES:
            note(vocab, time_beams(logits, count))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"versions": versions(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
