"""Where a step's time goes: ``python -m benchmarks.gpu.profile_engine SHAPE WORKLOAD``.

Prints the share of the time in which the GPU computes, and the kernels that it spends most on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.own import load, run
from benchmarks.gpu.workloads import workload


def main() -> None:
    """Profile one workload, answers cut to a length that a trace can hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("workload")
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--rows", type=int, default=22)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    arguments = parser.parse_args()
    llm = load(arguments.shape, arguments.models)
    report(llm, arguments.workload, arguments.new_tokens, arguments.rows)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of sorted intervals: kernels overlap where launches do."""
    total, reached = 0.0, float("-inf")
    for begin, end in spans:
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


def report(llm: Any, name: str, new_tokens: int, rows: int) -> None:
    """Run a workload under the profiler and print what it saw."""
    timed = workload(name).shortened(new_tokens)
    run(llm, timed)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        seconds = run(llm, timed)
    events = sorted(trace.key_averages(), key=lambda event: -event.device_time_total)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in trace.events() or ()
        if event.device_type == DeviceType.CUDA
    )
    busy = covered(spans) / (spans[-1][1] - spans[0][0])
    print(f"{name}: {seconds:.3f} s, GPU busy {busy:.1%} of the time between its first and last kernel")
    for event in events[:rows]:
        mean = event.device_time_total / event.count
        print(f"{event.device_time_total / 1e3:9.1f} ms {event.count:7d} x {mean:8.1f} us  {event.key[:90]}")


if __name__ == "__main__":
    main()
