"""Between host and device without waiting for what the device still has to do.

A copy from or to ordinary memory makes the host wait until the device has caught up; then the device
has nothing to do until the host has launched more. So everything that a step sends is pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 32
"""Elements; sections of a packed array begin at multiples of it, so that kernels may load wide."""


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy of `values` on `device`, in the order of its stream."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device, copy=True)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in host memory; on CUDA it is there once its stream has come so far."""
    if not tensor.is_cuda:
        return tensor.clone()
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)


class PackedTransfer:
    """Sends int32 arrays to the device, all of a step at once.

    Two host buffers take turns: a step may be prepared while what the one before sent still waits for its
    place in the stream.

    Args:
        capacity: elements.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._target = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._buffers = [torch.zeros(capacity, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
        self._read = [_event() if pinned else None for _ in range(2)]
        self._turn = 0

    def send(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        """Copy `arrays`, one behind the other; returns where each lies on the device."""
        with self.written(arrays) as (written, begins):
            self._target[: len(written)].copy_(written, non_blocking=True)
        return [self.place(begin, array.size) for begin, array in zip(begins, arrays, strict=True)]

    @contextmanager
    def written(self, arrays: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, list[int]]]:
        """Write `arrays` to pinned memory, one behind the other, for what is launched within the block.

        A kernel can read pinned memory directly. For few numbers that is faster than a copy: copies run on
        another engine of the GPU, and the stream waits for it before and after each of them.

        Yields:
            The memory, and where in it each array begins.
        """
        self._turn ^= 1
        buffer, read = self._buffers[self._turn], self._read[self._turn]
        if read is not None:
            read.synchronize()
        view, begins, end = buffer.numpy(), [], 0
        for array in arrays:
            begins.append(end)
            view[end : end + array.size] = array.ravel()
            end += aligned(array.size)
        yield buffer[:end], begins
        if read is not None:
            read.record()

    def place(self, begin: int, size: int) -> Tensor:
        """Elements `begin` to `begin + size` on the device."""
        return self._target[begin : begin + size]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def aligned(size: int) -> int:
    """`size` rounded up to where the next section may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
