"""What products by tiles of Hopper's matrix units share: which they take, and the order of their tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from server.device.triton_support import is_hopper


@triton.jit
def place_of(tile, high, wide):
    """(tile of rows, tile of outputs), of `high` × `wide`.

    Programs that run at the same time share rows and outputs: eight tiles of rows go with each of outputs.
    """
    first = tile // (8 * wide) * 8
    beside = tl.minimum(high - first, 8)
    return first + tile % (8 * wide) % beside, tile % (8 * wide) // beside


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether tiles of both can be read and multiplied so: of 16 bits, rows of whole 16 bytes, on Hopper."""
    if x.dtype not in (torch.float16, torch.bfloat16) or x.dtype != weight.dtype or x.shape[1] % 8:
        return False
    return is_hopper(x.device) and x.is_contiguous() and weight.is_contiguous()
