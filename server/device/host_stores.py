"""Small results on their way to the host: a kernel stores them in its memory."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor


class HostStores:
    """Sends tensors to pinned memory by a kernel.

    For few numbers that is faster than a copy, which makes the stream wait for another engine of the GPU,
    before and behind it.
    """

    def __init__(self) -> None:
        # torch, which sees no copy, would give the memory to others as soon as nobody holds it
        self._held: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def send(self, values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Store `values`, which are contiguous, in the order of the stream.

        Returns:
            A tensor of the host, and what says that they have come; None: they have.
        """
        if not values.is_cuda:
            return values.clone(), None
        from server.device.triton_store import store

        while self._held and self._held[0][1].query():  # type: ignore[no-untyped-call]
            self._held.popleft()
        target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        store(values, target)
        stored = torch.cuda.Event()  # type: ignore[no-untyped-call]
        stored.record()
        self._held.append((target, stored))
        return target, stored
