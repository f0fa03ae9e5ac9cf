"""What is kept for each slot: a few numbers, or a line over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device


class SlotValues:
    """Numbers of each slot, in host memory and beside the logits; 0 until they are set.

    Args:
        count: numbers a slot.
        num_slots: most sequences that run at once; slot `num_slots` stands for padding and stays 0.
        device: where the logits are.
        whole: int64 instead of floats.

    Attributes:
        host: float64 (int64) [count, num_slots + 1].
        on_device: float32 (int64) of the same shape, always in the same place; as of the last `flush`.
    """

    def __init__(self, count: int, num_slots: int, device: torch.device, *, whole: bool = False) -> None:
        self.host = np.zeros((count, num_slots + 1), np.int64 if whole else np.float64)
        dtype = torch.int64 if whole else torch.float32
        self.on_device = torch.zeros(self.host.shape, dtype=dtype, device=device)
        self._changed = False

    def set(self, slot: int, *values: float) -> None:
        """Slot `slot` has these values from now on."""
        self.host[:, slot] = values
        self._changed = True

    def flush(self) -> None:
        """Carry what was set to the device; before the next forward pass."""
        if self._changed:
            self.on_device.copy_(to_device(self._narrow(self.host), self.on_device.device))
            self._changed = False

    def column(self, index: int, slots: np.ndarray) -> Tensor:
        """Value `index` of these slots, [slots, 1] beside the logits."""
        return to_device(self._narrow(self.host[index, slots]), self.on_device.device).unsqueeze(1)

    @staticmethod
    def _narrow(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32) if values.dtype == np.float64 else values


class SlotTable:
    """A line for each slot, beside the logits; nearly always over the vocabulary.

    Made on first use: it takes memory by slots and columns.

    Args:
        dtype: of its numbers, which are 0 at first.
    """

    def __init__(self, num_slots: int, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (num_slots, columns)
        self._dtype = dtype
        self._device = device
        self._tensor: Tensor | None = None

    @property
    def tensor(self) -> Tensor:
        """[num_slots, columns], always in the same place."""
        return self.make() if self._tensor is None else self._tensor

    def make(self) -> Tensor:
        """Take the memory now, if that was not done before."""
        if self._tensor is None:
            self._tensor = torch.zeros(self._shape, dtype=self._dtype, device=self._device)
        return self._tensor

    def copy(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy lines of slots `sources` to slots `targets`; no slot is in both."""
        if self._tensor is not None:
            self._tensor[targets.tolist()] = self._tensor[sources.tolist()]

    @contextmanager
    def stand_in(self) -> Iterator[None]:
        """Meanwhile one number stands for the table, if there is none yet: for kernels that read no slot."""
        if self._tensor is not None:
            yield
            return
        self._tensor = torch.zeros(16, dtype=self._dtype, device=self._device)[:1].expand(self._shape)
        try:
            yield
        finally:
            self._tensor = None
