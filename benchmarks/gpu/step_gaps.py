"""Where a replayed decode step waits: ``.venv/bin/python -m benchmarks.gpu.step_gaps SHAPE ROWS [CONTEXT]``.

Prints, kernel by kernel, its own time and the time between the end of the kernel before and its beginning,
which is negative where it was launched early.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.own import load
from benchmarks.gpu.profile_engine import gpu_events
from benchmarks.gpu.replays import place_decodes, replay_decodes
from utils.commands import with_interpreter

REPLAYS = 20


def kernels(llm: Any, rows: int, context: int) -> dict[str, list[tuple[float, float]]]:
    """(own µs, µs since the kernel before) of each kernel's runs, by name."""
    place_decodes(llm, rows, context)
    replay_decodes(llm, rows)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(REPLAYS):
            replay_decodes(llm, rows)
        torch.cuda.synchronize()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    reached = None
    for event in sorted(gpu_events(trace), key=lambda event: event.start_ns()):
        begin, end = event.start_ns(), event.start_ns() + event.duration_ns()
        if reached is not None:
            found[event.name()].append(((end - begin) / 1e3, (begin - reached) / 1e3))
        reached = max(reached or 0, end)
    return found


def main() -> None:
    """Print a table, the kernels that take most time first."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("rows", type=int, help="one of the sizes that are captured")
    parser.add_argument("context", type=int, nargs="?", default=384)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    arguments = parser.parse_args()
    llm = load(arguments.shape, arguments.models)
    found = kernels(llm, arguments.rows, arguments.context)
    gaps = sum(max(gap, 0.0) for runs in found.values() for _, gap in runs) / REPLAYS
    print(f"{arguments.rows} rows at {arguments.context}: {gaps:.0f} us a step between kernels")
    print("a step       own us    before  kernel")
    for name, runs in sorted(found.items(), key=lambda item: -sum(own for own, _ in item[1])):
        own, gap = (statistics.mean(values) for values in zip(*runs, strict=True))
        print(f"{len(runs) / REPLAYS:6.1f} {own:12.2f} {gap:9.2f}  {name[:80]}")


if __name__ == "__main__":
    main()
