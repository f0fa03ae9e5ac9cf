"""The memory behind the blocks, and the copies between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.continuous_batching.cache.manager import BlockPair


class CacheStorage:
    """Keys and values of all blocks, on the device and on the host.

    A block holds all layers contiguously, so that swapping one is a single copy.

    Args:
        num_blocks: blocks on the device.
        num_host_blocks: blocks on the host.
        block_shape: ``(layers, 2, block_size, kv_heads, head_dim)``.
    """

    def __init__(
        self,
        num_blocks: int,
        num_host_blocks: int,
        block_shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        # zeros, not empty: attention multiplies unused slots by a weight of zero, and NaN × 0 is NaN
        self.device = torch.zeros((num_blocks, *block_shape), dtype=dtype, device=device)
        pinned = device.type == "cuda" and num_host_blocks > 0
        self.host = torch.empty((num_host_blocks, *block_shape), dtype=dtype, pin_memory=pinned)

    @staticmethod
    def bytes_per_block(block_shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return int(torch.Size(block_shape).numel()) * dtype.itemsize

    def swap_out(self, pairs: Sequence[BlockPair]) -> None:
        """Copy (device, host) pairs."""
        _copy(self.device, self.host, pairs)

    def swap_in(self, pairs: Sequence[BlockPair]) -> None:
        """Copy (host, device) pairs."""
        _copy(self.host, self.device, pairs)

    def copy(self, pairs: Sequence[BlockPair]) -> None:
        """Copy (device, device) pairs; no block is both source and destination."""
        if pairs:
            sources, targets = (
                torch.tensor(side, device=self.device.device) for side in zip(*pairs, strict=True)
            )
            self.device[targets] = self.device[sources]


def _copy(source: Tensor, target: Tensor, pairs: Sequence[BlockPair]) -> None:
    for from_block, to_block in pairs:
        target[to_block].copy_(source[from_block], non_blocking=True)
