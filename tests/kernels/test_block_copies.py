"""Swaps run beside the steps, and no step sees a block half copied."""

from __future__ import annotations

import random

import torch

from server.continuous_batching.cache.storage import CacheStorage

BLOCKS, HOST_BLOCKS = 48, 40


def filled(storage: CacheStorage) -> list[float]:
    """The value that each device block is filled with; NaN for one of mixed content."""
    low, high = storage.device.flatten(1).amin(1), storage.device.flatten(1).amax(1)
    return torch.where(low == high, low, float("nan")).tolist()


def test_steps_write_before_and_after_swaps(device: torch.device) -> None:
    """Random swaps, each with a "step" launched at once that overwrites the blocks it needs, and the
    next step that overwrites everything else that was freed."""
    shape = (4, 2, 16, 8, 128) if device.type == "cuda" else (1, 2, 2, 1, 4)
    storage = CacheStorage(BLOCKS, HOST_BLOCKS, shape, torch.float32, device)
    rng, heard = random.Random(0), []
    held = {block: float(block) for block in range(BLOCKS)}  # what each device block should hold
    away: dict[int, float] = {}  # the same of the host pool
    for block, value in held.items():
        storage.device[block] = value
    for step in range(30):
        free = [block for block in range(BLOCKS) if block not in held]
        swap_in = list(zip(rng.sample(sorted(away), min(len(away), len(free), 9)), free, strict=False))
        places = [h for h in range(HOST_BLOCKS) if h not in away]
        leaving = rng.sample(sorted(held), min(len(held), len(places), rng.randint(1, 20)))
        swap_out = list(zip(leaving, places, strict=False))
        needed = set(leaving[: rng.randint(0, 4)])
        storage.settle()
        storage.swap(swap_out, swap_in, needed, lambda count, seconds: heard.append((count, seconds)))
        for block, place in swap_out:
            away[place] = held.pop(block)
        for place, block in swap_in:
            held[block] = away.pop(place)
        for block in needed:  # the step beside the copies
            held[block] = 1000.0 + step
            storage.device[block] = held[block]
        storage.settle()
        for block in leaving:  # the step behind them
            if block not in held:
                storage.device[block] = -1.0
        values = filled(storage)
        assert {block: values[block] for block in held} == held
    assert sum(count for count, _ in heard) > 100
    assert all(seconds > 0.0 for _, seconds in heard)


def test_copies_within_the_pool(device: torch.device) -> None:
    storage = CacheStorage(6, 0, (1, 2, 2, 1, 4), torch.float32, device)
    for block in range(6):
        storage.device[block] = block
    storage.copy([(0, 3), (5, 1)])
    storage.copy([])
    assert filled(storage) == [0.0, 5.0, 2.0, 0.0, 4.0, 5.0]
