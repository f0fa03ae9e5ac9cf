"""How fast this machine reads memory: the floor under a token at batch 1."""

from __future__ import annotations

import time

import torch


def read_bandwidth(threads: int, *, repetitions: int = 9) -> float:
    """Bytes a second at which `threads` threads sum an array far larger than the caches; the best."""
    torch.set_num_threads(threads)
    data = torch.ones(1 << 28, dtype=torch.int32)
    best = float("inf")
    for _ in range(repetitions):
        begin = time.perf_counter()
        torch.sum(data, dtype=torch.int32)
        best = min(best, time.perf_counter() - begin)
    return data.numel() * data.element_size() / best
