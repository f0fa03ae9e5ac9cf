"""How many blocks each group of layers gets: for a configuration that leaves it open, and to refuse one that
asks for too many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from server.checkpoints.errors import ModelError
from server.layers.cache_spec import CacheSpec
from server.scheduling.limits import GroupSize, most_held

RAM_SHARE = 1 / 3
"""Of the free RAM that a cache in it may take: the rest of the machine lives there too."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def all_memory(device: torch.device) -> int:
    """Bytes that `device` has, free or not: no cache can have more."""
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        return int(total)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class GroupNeed:
    """What a group of layers can use.

    Attributes:
        block_bytes: memory of a block.
        most: blocks that the largest possible batch uses.
    """

    block_bytes: int
    most: int


def blocks_that_fit(
    device: torch.device, groups: Sequence[GroupNeed], fraction: float, reserved: int = 0, ranks: int = 1
) -> int:
    """The largest number of which each group can have as many blocks, or all that it can use.

    Args:
        device: where the blocks go.
        groups: what shares the memory.
        fraction: share of the device's free memory to take (of a third of it, in RAM).
        reserved: bytes of that memory that others will need.
        ranks: processes that share RAM, and take as much of it each.
    """
    share = fraction if device.type == "cuda" else fraction * RAM_SHARE / ranks
    left, count = int((free_memory(device) - reserved) * share), 0
    for group in sorted(groups, key=lambda group: group.most):  # who has enough leaves the rest to the others
        sharing = sum(other.block_bytes for other in groups if other.most > count)
        more = min(max(left, 0) // sharing, group.most - count) if sharing else 0
        count, left = count + more, left - more * sharing
    return max(count, 1)


@dataclass(frozen=True, slots=True)
class CacheWishes:
    """What the configuration says of the cache; None: as much as is useful and fits.

    Attributes:
        num_blocks: of the first group of layers.
        num_window_blocks: of each group of layers that have a window, where others see everything.
        num_blocks_cpu: of the first group, in host memory.
        block_size: tokens a block.
        memory_fraction: share of the free memory to take.
        ranks: processes that have a cache of this size each, on this host.
    """

    num_blocks: int | None
    num_window_blocks: int | None
    num_blocks_cpu: int | None
    block_size: int
    memory_fraction: float
    ranks: int = 1


def size_groups(
    specs: Sequence[CacheSpec],
    wishes: CacheWishes,
    device: torch.device,
    *,
    max_rows: int,
    max_tokens: int,
    max_length: int,
    reserved: int = 0,
) -> tuple[GroupSize, ...]:
    """The blocks of each group.

    Sequences need blocks of a window as far as the window reaches, and of what a step computes. So a group
    with a window gets no more than all rows and a step need at once, and no more than the first group.

    Args:
        specs: the groups.
        wishes: of the configuration.
        device: where the blocks go.
        max_rows, max_tokens: sequences and tokens of a step.
        max_length: tokens of a sequence.
        reserved: bytes of the device's memory that others will need.

    Raises:
        ModelError: more blocks are configured than there is memory for, or for windows that the model lacks.
    """
    size = wishes.block_size
    if wishes.num_window_blocks is not None and not _windows_beside(specs):
        raise ModelError(
            "cache_config.num_window_blocks: this model has no layers with a window beside others without; "
            "set num_blocks alone"
        )
    needs = [
        GroupNeed(
            spec.bytes_per_block(size), _most_blocks(spec.window, size, max_rows, max_tokens, max_length)
        )
        for spec in specs
    ]
    host = torch.device("cpu")
    counts = _device_counts(specs, needs, wishes, device, reserved)
    host_counts = _host_counts(counts, needs, wishes)
    _check_memory("num_blocks", counts, needs, device, 1 if device.type == "cuda" else wishes.ranks)
    _check_memory("num_blocks_cpu", host_counts, needs, host, wishes.ranks)
    return tuple(
        GroupSize(count, host_count, spec.window, need.block_bytes, name)
        for count, host_count, spec, need, name in zip(
            counts, host_counts, specs, needs, _names(specs), strict=True
        )
    )


def _windows_beside(specs: Sequence[CacheSpec]) -> list[CacheSpec]:
    """The groups with a window that are not the first."""
    return [spec for spec in specs[1:] if spec.window is not None]


def _device_counts(
    specs: Sequence[CacheSpec],
    needs: Sequence[GroupNeed],
    wishes: CacheWishes,
    device: torch.device,
    reserved: int,
) -> list[int]:
    """Blocks of each group on `device`."""
    windows, fixed = _windows_beside(specs), wishes.num_window_blocks
    num_blocks = wishes.num_blocks
    if num_blocks is None:
        open_needs = [
            need for need, spec in zip(needs, specs, strict=True) if fixed is None or spec not in windows
        ]
        taken = (fixed or 0) * sum(spec.bytes_per_block(wishes.block_size) for spec in windows)
        fraction, ranks = wishes.memory_fraction, wishes.ranks
        num_blocks = blocks_that_fit(device, open_needs, fraction, reserved + taken, ranks)
    counts = [num_blocks, *(min(num_blocks, need.most) for need in needs[1:])]
    if fixed is not None:
        counts = [fixed if spec in windows else count for spec, count in zip(specs, counts, strict=True)]
    return counts


def _host_counts(counts: Sequence[int], needs: Sequence[GroupNeed], wishes: CacheWishes) -> list[int]:
    """Blocks of each group in host memory, where `counts` are on the device: a quarter, unless configured."""
    num_blocks = wishes.num_blocks_cpu
    if num_blocks is None:
        most = max(counts[0] // 4, 1)
        quarter = [
            GroupNeed(need.block_bytes, min(most, count)) for need, count in zip(needs, counts, strict=True)
        ]
        host, fraction = torch.device("cpu"), wishes.memory_fraction
        num_blocks = blocks_that_fit(host, quarter, fraction, ranks=wishes.ranks)
    return [num_blocks, *(min(num_blocks, count) for count in counts[1:])]


def _most_blocks(window: int | None, size: int, max_rows: int, max_tokens: int, max_length: int) -> int:
    """Blocks that the largest batch uses at once."""
    everything = max_rows * most_held(max_length, size, None)
    if window is None:
        return everything
    # of each row, what it sees and the block that its chunk of the step begins in; then the step's own tokens
    return min(everything, max_rows * (most_held(max_length, size, window) + 1) + -(-max_tokens // size))


def _names(specs: Sequence[CacheSpec]) -> list[str]:
    """A name for each group, none of them twice."""
    names = [spec.name for spec in specs]
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]


def _check_memory(
    key: str, counts: Sequence[int], needs: Sequence[GroupNeed], device: torch.device, ranks: int
) -> None:
    """Raise ModelError if the blocks of `ranks` processes exceed the memory of `device`, which they share."""
    needed = ranks * sum(count * need.block_bytes for count, need in zip(counts, needs, strict=True))
    there_is = all_memory(device)
    if needed > there_is:
        raise ModelError(
            f"cache_config.{key}: {' + '.join(map(str, counts))} blocks take {needed / 2**30:.1f} GiB, "
            f"more than the {there_is / 2**30:.1f} GiB of memory that this {device.type} has"
        )
