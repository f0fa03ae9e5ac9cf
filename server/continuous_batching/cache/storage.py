"""The memory behind the blocks, and the copies between them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch

from server.continuous_batching.cache.block_copies import choose_block_copies
from server.continuous_batching.cache.manager import BlockPair
from server.continuous_batching.stopwatch import Stopwatch
from server.continuous_batching.transfer import to_device

Swapped = Callable[[int, float], None]
"""Hears of a finished swap: how many blocks, how many seconds."""


class CacheStorage:
    """Keys and values of all blocks, on the device and on the host.

    A block holds all layers contiguously, so that swapping one is a single copy. On CUDA the copies
    between the pools run on a stream of their own, by the copy engines, beside the steps.

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
        self.block_size = block_shape[2]
        self._streams = _Streams(device) if pinned else None
        self.block_copies = choose_block_copies(device)
        self._stopwatch = Stopwatch(device)

    @staticmethod
    def bytes_per_block(block_shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return int(torch.Size(block_shape).numel()) * dtype.itemsize

    def swap(
        self,
        swap_out: Sequence[BlockPair],
        swap_in: Sequence[BlockPair],
        needed: Container[int],
        swapped: Swapped,
    ) -> None:
        """Copy (device, host) pairs, then (host, device) pairs, beside the next step.

        Args:
            needed: device blocks of `swap_out` that the next step writes to: it waits for these.
                Nothing else of both lists may be touched before `settle`.
            swapped: hears, some steps later, how long it took.
        """
        urgent = [pair for pair in swap_out if pair[0] in needed]
        others = [pair for pair in swap_out if pair[0] not in needed]
        with nullcontext() if self._streams is None else self._streams.beside():
            self._stopwatch.start()
            self.block_copies(self.device, self.host, urgent)
            self.settle()
            self.block_copies(self.device, self.host, others)
            self.block_copies(self.host, self.device, swap_in)
            self._stopwatch.stop(partial(swapped, len(swap_out) + len(swap_in)))

    def settle(self) -> None:
        """Let the steps launched from now on follow all copies so far."""
        if self._streams is not None:
            self._streams.join()

    def copy(self, pairs: Sequence[BlockPair]) -> None:
        """Copy (device, device) pairs; no block is both source and destination."""
        if not pairs:
            return
        index = to_device(np.array(pairs, np.int64), self.device.device)
        if self.device.is_cuda:
            from server.continuous_batching.kernels.triton_copy import copy_blocks

            copy_blocks(self.device, index)
        else:
            self.device[index[:, 1]] = self.device[index[:, 0]]


class _Streams:
    """The stream of the steps, which is the current one, and one for copies beside it."""

    def __init__(self, device: torch.device) -> None:
        self._steps = torch.cuda.current_stream(device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def beside(self) -> AbstractContextManager[object]:
        """What is launched in here follows all steps so far, and runs beside later ones."""
        self._copies.wait_stream(self._steps)
        return torch.cuda.stream(self._copies)

    def join(self) -> None:
        """Steps launched from now on follow the copies so far."""
        self._steps.wait_stream(self._copies)
