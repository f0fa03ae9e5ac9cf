"""Swapping, alone and beside decoding: what `benchmarks.gpu.own` runs under the name SWAP."""

from __future__ import annotations

import random
import statistics
from typing import Any

import torch

from benchmarks.gpu.graph_time import mean_ms
from benchmarks.gpu.replays import place_decodes, replay_decodes

BLOCKS = 900
"""In a shot: more would fill the queue of the copies' stream and hold up the host."""
SHOTS = 7
HEAD_START_CYCLES = 40_000_000
"""The GPU waits for so long (some 20 ms) before a shot, while the host launches all of it."""

Moves = list[tuple[int, int, int]]


def measure(llm: Any, rows: int = 128, context: int = 512) -> dict[str, Any]:
    """Bandwidth each way, and how much slower decode steps are while it goes on.

    Args:
        llm: with at least `BLOCKS` blocks on the host.
        rows: decodes of a step.
        context: tokens that each attends to.
    """
    (group,), storage = llm.engine.cache.groups, llm.engine.worker.runner._storage
    rng = random.Random(0)
    device_blocks = rng.sample(range(group.size.num_blocks), BLOCKS)  # far apart: nothing to join
    host_blocks = rng.sample(range(group.size.num_host_blocks), BLOCKS)
    out = [(0, *pair) for pair in zip(device_blocks, host_blocks, strict=True)]
    back = [(0, host, device) for _, device, host in out]
    size = storage.device[0][0].nbytes
    directions: dict[str, tuple[Moves, Moves]] = {"out": (out, []), "in": ([], back)}
    place_decodes(llm, rows, context)
    alone, _ = _shoot(llm, rows, ([], []))
    result: dict[str, Any] = {"block_bytes": size, "rows": rows, "context": context, "step_ms": alone}
    for name, pairs in directions.items():
        _, copying = _shoot(llm, 0, pairs)
        beside, _ = _shoot(llm, rows, pairs)
        result[name] = {
            "gigabytes_per_second": BLOCKS * size / copying / 1e6,
            "step_ms_beside": beside,
            "slowdown": beside / alone - 1.0,
        }
    return result


@torch.inference_mode()
def _shoot(llm: Any, rows: int, pairs: tuple[Moves, Moves]) -> tuple[float, float]:
    """Median milliseconds of (a step, all copies), launched together; `rows` 0: no steps."""
    runner = llm.engine.worker.runner
    steps, copies = [], []
    for _ in range(SHOTS):
        heard: list[float] = []
        torch.cuda.synchronize()
        torch.cuda._sleep(HEAD_START_CYCLES)
        if pairs[0] or pairs[1]:
            runner._storage.swap(*pairs, (), lambda _, seconds, heard=heard: heard.append(1e3 * seconds))
        if rows:
            steps.append(mean_ms(lambda: replay_decodes(llm, rows), 3))
        torch.cuda.synchronize()
        runner._storage._stopwatch.start()  # tells what is over
        runner._storage.settle()
        copies += heard
    return (statistics.median(steps) if steps else 0.0, statistics.median(copies) if copies else 0.0)
