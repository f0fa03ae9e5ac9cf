"""From codes to weights: ``w[k, n] = scale[g, n] · (code[k, n] − zero[g, n])``, g the group of input k.

The formula of GPTQ as AutoGPTQ published it. Codes and zeros have 8 bits and scales of half precision
11, so that float32 holds the product exactly and the only rounding is the last one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def dequantize(codes: Tensor, zeros: Tensor, scales: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """Weights whose groups stand one after the other.

    Args:
        codes: uint8 [inputs, outputs].
        zeros: uint8 [groups, outputs].
        scales: float [groups, outputs].
        group_size: inputs of a group.

    Returns:
        `dtype` [inputs, outputs].
    """
    grouped = codes.reshape(-1, group_size, codes.shape[1])
    weights: Tensor = (grouped.float() - zeros.unsqueeze(1).float()) * scales.unsqueeze(1).float()
    return weights.flatten(0, 1).to(dtype)
