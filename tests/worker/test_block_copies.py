"""Swaps run beside the steps, and no step sees a block half copied."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from server.ops.cpu.build import find_compiler
from server.worker.block_copies import BatchedBlockCopies, BlockCopies, choose_block_copies
from server.worker.cache_storage import CacheStorage, GroupMemory
from server.worker.triton_copy import copy_blocks

BLOCKS, HOST_BLOCKS = 48, 40


def filled(storage: CacheStorage) -> list[float]:
    """The value that each device block is filled with; NaN for one of mixed content."""
    low, high = storage.device[0].flatten(1).amin(1), storage.device[0].flatten(1).amax(1)
    return torch.where(low == high, low, float("nan")).tolist()


def test_steps_write_before_and_after_swaps(device: torch.device) -> None:
    """Random swaps, each with a "step" launched at once that overwrites the blocks it needs, and the
    next step that overwrites everything else that was freed."""
    shape = (4, 2, 16, 8, 128) if device.type == "cuda" else (1, 2, 2, 1, 4)
    storage = CacheStorage([GroupMemory(BLOCKS, HOST_BLOCKS, shape, torch.float32)], device)
    rng, heard = random.Random(0), []
    held = {block: float(block) for block in range(BLOCKS)}  # what each device block should hold
    away: dict[int, float] = {}  # the same of the host pool
    for block, value in held.items():
        storage.device[0][block] = value
    for step in range(30):
        free = [block for block in range(BLOCKS) if block not in held]
        swap_in = list(zip(rng.sample(sorted(away), min(len(away), len(free), 9)), free, strict=False))
        places = [h for h in range(HOST_BLOCKS) if h not in away]
        leaving = rng.sample(sorted(held), min(len(held), len(places), rng.randint(1, 20)))
        swap_out = list(zip(leaving, places, strict=False))
        needed = set(leaving[: rng.randint(0, 4)])
        storage.settle()
        storage.swap(
            [(0, *pair) for pair in swap_out],
            [(0, *pair) for pair in swap_in],
            {(0, block) for block in needed},
            lambda size, seconds: heard.append((size, seconds)),
        )
        for block, place in swap_out:
            away[place] = held.pop(block)
        for place, block in swap_in:
            held[block] = away.pop(place)
        for block in needed:  # the step beside the copies
            held[block] = 1000.0 + step
            storage.device[0][block] = held[block]
        storage.settle()
        for block in leaving:  # the step behind them
            if block not in held:
                storage.device[0][block] = -1.0
        values = filled(storage)
        assert {block: values[block] for block in held} == held
    assert sum(size for size, _ in heard) > 100 * storage.device[0][0].nbytes
    assert all(seconds > 0.0 for _, seconds in heard)


def test_copies_within_the_pool(device: torch.device) -> None:
    storage = CacheStorage([GroupMemory(6, 0, (1, 2, 2, 1, 4), torch.float32)], device)
    for block in range(6):
        storage.device[0][block] = block
    storage.copy(np.array([(0, 0, 3), (0, 5, 1)]))
    storage.copy(np.empty((0, 3), np.int64))
    assert filled(storage) == [0.0, 5.0, 2.0, 0.0, 4.0, 5.0]


def test_copies_within_the_pool_by_the_kernel(device: torch.device) -> None:
    """Blocks of a size that its tiles do not divide."""
    pool = torch.randn(6, 3, 5000, device=device)
    before = pool.clone()
    copy_blocks(pool, torch.tensor([(0, 3), (5, 1)], device=device))
    assert torch.equal(pool, before[[0, 5, 2, 0, 4, 5]])


PAIRS = [(0, 4), (1, 5), (2, 6), (5, 1), (7, 7)]
DRIVER = """
#include <cstddef>
#include <cstring>
struct Location { int type, id; };
struct Attributes { int order; Location source, target; unsigned flags; };  // as cuda.h declares them
extern "C" int cuMemcpyBatchAsync(unsigned long long *targets, unsigned long long *sources, size_t *sizes,
                                  size_t count, Attributes *attributes, size_t *firsts, size_t types,
                                  size_t *failed, void *stream) {
    if (types != 1 || firsts[0] != 0 || attributes->order != 1 || attributes->flags != 1) return 1;
    if (attributes->source.type || attributes->target.type || stream != (void *)0x57) return 2;
    for (size_t i = 0; i < count; i++) {
        if (sizes[i] != 48) { *failed = i; return 3; }
        memcpy((void *)targets[i], (void *)sources[i], sizes[i]);
    }
    return 0;
}
"""
"""Stands for the driver of a GPU: the function as CUDA 12.8 declares it, copying at once."""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = tmp_path_factory.mktemp("driver") / "driver.cpp"
    source.write_text(DRIVER)
    library = source.with_suffix(".so")
    subprocess.run([*find_compiler(), "-shared", "-fPIC", source, "-o", library], check=True)
    return str(library)


def test_many_copies_in_one_call(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0x57))
    source = torch.randn(8, 3, 4)
    one_by_one, batched = torch.zeros(8, 3, 4), torch.zeros(8, 3, 4)
    BlockCopies()(source, one_by_one, PAIRS)
    BatchedBlockCopies(driver)(source, batched, PAIRS)
    assert torch.equal(batched, one_by_one)
    assert torch.equal(batched[[4, 5, 6, 1, 7]], source[[0, 1, 2, 5, 7]])
    assert not batched[[0, 2, 3]].any()
    with pytest.raises(RuntimeError, match="status 3 at copy 0 of 5"):
        BatchedBlockCopies(driver)(source[:, :2].contiguous(), batched, PAIRS)


def test_an_older_driver_is_told_from_a_newer_one(tmp_path: Path) -> None:
    library = tmp_path / "older.so"
    subprocess.run([*find_compiler(), "-shared", "-x", "c++", "/dev/null", "-o", library], check=True)
    with pytest.raises(AttributeError, match="cuMemcpyBatchAsync"):
        BatchedBlockCopies(str(library))


def test_a_cpu_has_no_driver_to_ask() -> None:
    assert choose_block_copies(torch.device("cpu")).name == BlockCopies.name
