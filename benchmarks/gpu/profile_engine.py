"""Where a step's time goes: ``.venv/bin/python -m benchmarks.gpu.profile_engine SHAPE WORKLOAD``.

Prints the share of the time in which the GPU computes, and the kernels that it spends most on.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.own import load, run
from benchmarks.gpu.workloads import workload
from utils.commands import with_interpreter


def main() -> None:
    """Profile one workload."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("workload")
    parser.add_argument("--new-tokens", type=int, default=10**6, help="longest answer, in tokens")
    parser.add_argument("--rows", type=int, default=22)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    arguments = parser.parse_args()
    llm = load(arguments.shape, arguments.models)
    report(llm, arguments.workload, arguments.new_tokens, arguments.rows)


def gpu_events(trace: Any) -> list[Any]:
    """What ran on the GPU, as the tracer gave it: a million events are too many for torch's own tables."""
    events = trace.profiler.kineto_results.events()
    return [event for event in events if event.device_type() == DeviceType.CUDA]


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of sorted intervals: kernels overlap where launches do."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


def idle(spans: list[tuple[float, float]], pieces: int = 10) -> list[float]:
    """Share of each tenth of the time in which nothing runs."""
    first, last = spans[0][0], max(end for _, end in spans)
    piece = (last - first) / pieces
    borders = [first + piece * i for i in range(pieces + 1)]
    return [
        1.0 - covered([(max(b, low), min(e, high)) for b, e in spans if b < high and e > low]) / piece
        for low, high in pairwise(borders)
    ]


def longest_gaps(spans: list[tuple[float, float]], count: int = 5) -> list[tuple[float, float]]:
    """(ms since the first span, ms) of the longest times in which nothing runs."""
    gaps: list[tuple[float, float]] = []
    first, reached = spans[0]
    for begin, end in spans:
        gaps.append(((reached - first) / 1e6, (begin - reached) / 1e6))
        reached = max(reached, end)
    return sorted(gaps, key=lambda gap: -gap[1])[:count]


def report(llm: Any, name: str, new_tokens: int, rows: int) -> None:
    """Run a workload under the profiler and print what it saw."""
    timed = workload(name).shortened(new_tokens)
    alone = run(llm, timed)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        seconds = run(llm, timed)
    events = gpu_events(trace)
    spans = sorted((event.start_ns(), event.start_ns() + event.duration_ns()) for event in events)
    busy = covered(spans) / (max(end for _, end in spans) - spans[0][0])
    print(f"{name}: {seconds:.3f} s under the profiler, {alone:.3f} s without")
    print(f"GPU busy {busy:.1%} of the time between its first and last kernel; idle in each tenth of it:")
    print(" ".join(f"{share:.1%}" for share in idle(spans)))
    print("longest gaps:", ", ".join(f"{gap:.1f} ms at {at:.0f}" for at, gap in longest_gaps(spans)))
    totals: dict[str, list[int]] = defaultdict(list)
    for event in events:
        totals[event.name()].append(event.duration_ns())
    for kernel, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[:rows]:
        total, mean = sum(times) / 1e6, statistics.mean(times) / 1e3
        print(f"{total:9.1f} ms {len(times):7d} x {mean:8.1f} us  {kernel[:90]}")


if __name__ == "__main__":
    main()
