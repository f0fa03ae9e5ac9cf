"""How many blocks fit: for a configuration that leaves it open, and to refuse one that asks for too many."""

from __future__ import annotations

import os

import torch

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


def blocks_that_fit(
    device: torch.device, bytes_per_block: int, fraction: float, useful: int, reserved: int = 0
) -> int:
    """Blocks for `fraction` of the free memory but `reserved` bytes, and never more than `useful`.

    Args:
        device: where the blocks go.
        bytes_per_block: size of one.
        fraction: share of the device's free memory to take (of a third of it, in RAM).
        useful: blocks that the largest possible batch could use.
        reserved: what others will need of that memory.
    """
    share = fraction if device.type == "cuda" else fraction * RAM_SHARE
    free = free_memory(device) - reserved
    return max(min(int(free * share) // bytes_per_block, useful), 1)
