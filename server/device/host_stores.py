"""Small results for the host, which a kernel stores in pinned memory."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from server.device.transfer import to_host


class HostStores:
    """Sends small tensors to the host by a kernel, which is faster than a copy (`PackedTransfer.written`)."""

    def __init__(self) -> None:
        # torch's allocator tracks copies, not kernels: it would reuse a dropped buffer before it is written
        self._held: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def send(self, values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """Store `values`, which are contiguous, in the order of the stream.

        Returns:
            A tensor of the host, and the event after which it holds the values; None: it does already.
        """
        if not values.is_cuda:
            return to_host(values), None
        from server.device.triton_store import store

        while self._held and self._held[0][1].query():  # type: ignore[no-untyped-call]
            self._held.popleft()
        target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        store(values, target)
        stored = torch.cuda.Event()  # type: ignore[no-untyped-call]
        stored.record()
        self._held.append((target, stored))
        return target, stored
