"""Masks with a bit for each token, applied to lines of scores."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device
from server.ops.cpu.build import NativeError
from server.ops.cpu.library import load
from server.sampling.stage import EXCLUDED


class Exclude(Protocol):
    """Excludes what masks do not allow."""

    def __call__(self, scores: Tensor, at: np.ndarray, masks: np.ndarray, rows: np.ndarray) -> None:
        """Change lines `at` of the scores, in place.

        Args:
            scores: float32 [lines, vocab], contiguous.
            at: int64 [n].
            masks: int32 [masks, words], a bit for each token, the lowest first.
            rows: int64 [n], the mask of each of these lines.
        """
        ...


def exclude_by_torch(scores: Tensor, at: np.ndarray, masks: np.ndarray, rows: np.ndarray) -> None:
    """`Exclude` in torch's operators: on every device."""
    inverted = np.ascontiguousarray(~masks[rows]).view(np.uint8)  # while it is small
    excluded = np.unpackbits(inverted, axis=1, count=scores.shape[1], bitorder="little").view(bool)
    index = to_device(at, scores.device)
    scores[index] = scores[index].masked_fill(to_device(excluded, scores.device), EXCLUDED)


def exclude_function(device: torch.device) -> Exclude:
    """What applies masks on `device`."""
    if device.type != "cpu":
        return exclude_by_torch
    try:
        return load().exclude
    except NativeError:
        return exclude_by_torch
