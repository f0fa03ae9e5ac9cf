"""The memory behind the blocks, and the copies between them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from server.device.stopwatch import Stopwatch
from server.device.transfer import to_device
from server.scheduling.block_pool import BlockMove
from server.worker.block_copies import choose_block_copies

Swapped = Callable[[int, float], None]
"""Hears of a finished swap: how many bytes, how many seconds."""


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """What one group of layers needs.

    Attributes:
        num_blocks: on the device.
        num_host_blocks: on the host.
        block_shape: ``(layers, 2, block_size, kv_heads, head_dim)``.
        dtype: of keys and values.
    """

    num_blocks: int
    num_host_blocks: int
    block_shape: tuple[int, ...]
    dtype: torch.dtype


class CacheStorage:
    """Keys and values of all blocks, on the device and on the host: a tensor for each group of layers.

    A block holds all layers of its group contiguously, so that swapping one is a single copy. On CUDA the
    copies between the pools run on a stream of their own, by the copy engines, beside the steps.

    Args:
        groups: their sizes.
        place: the device.
    """

    def __init__(self, groups: Sequence[GroupMemory], place: torch.device) -> None:
        self.place = place
        # zeros, not empty: attention multiplies unused slots by a weight of zero, and NaN × 0 is NaN
        self.device = [
            torch.zeros((g.num_blocks, *g.block_shape), dtype=g.dtype, device=place) for g in groups
        ]
        pinned = place.type == "cuda" and any(group.num_host_blocks for group in groups)
        self.host = [
            torch.empty((g.num_host_blocks, *g.block_shape), dtype=g.dtype, pin_memory=pinned) for g in groups
        ]
        self._streams = _Streams(place) if pinned else None
        self.block_copies = choose_block_copies(place)
        self._stopwatch = Stopwatch(place)

    def swap(
        self,
        swap_out: Sequence[BlockMove],
        swap_in: Sequence[BlockMove],
        needed: Container[tuple[int, int]],
        swapped: Swapped,
    ) -> None:
        """Copy (group, device, host) moves, then (group, host, device) moves, beside the next step.

        Args:
            needed: (group, device block) of `swap_out` that the next step writes to: it waits for these.
                Nothing else of both lists may be touched before `settle`.
            swapped: hears, some steps later, how long it took.
        """
        urgent = [move for move in swap_out if move[:2] in needed]
        others = [move for move in swap_out if move[:2] not in needed]
        size = sum(self.device[group][0].nbytes for group, _, _ in (*swap_out, *swap_in))
        with nullcontext() if self._streams is None else self._streams.beside():
            self._stopwatch.start()
            self._copy_between(self.device, self.host, urgent)
            self.settle()
            self._copy_between(self.device, self.host, others)
            self._copy_between(self.host, self.device, swap_in)
            self._stopwatch.stop(partial(swapped, size))

    def _copy_between(
        self, sources: Sequence[Tensor], targets: Sequence[Tensor], moves: Sequence[BlockMove]
    ) -> None:
        for group, (source, target) in enumerate(zip(sources, targets, strict=True)):
            self.block_copies(source, target, [move[1:] for move in moves if move[0] == group])

    def settle(self) -> None:
        """Let the steps launched from now on follow all copies so far."""
        if self._streams is not None:
            self._streams.join()

    def copy(self, moves: np.ndarray) -> None:
        """Copy (group, device, device) moves, int64 [n, 3]; no block is both source and destination."""
        if not len(moves):
            return
        for group, blocks in enumerate(self.device):
            pairs = moves[moves[:, 0] == group, 1:]
            if not len(pairs):
                continue
            index = to_device(pairs, self.place)
            if self.place.type == "cuda":
                from server.worker.triton_copy import copy_blocks

                copy_blocks(blocks, index)
            else:
                blocks[index[:, 1]] = blocks[index[:, 0]]


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
