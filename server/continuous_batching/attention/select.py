"""Which attention backend runs, and why."""

from __future__ import annotations

import torch

from server.continuous_batching.attention.base import AttentionBackend, AttentionShape
from server.continuous_batching.attention.torch_backend import TorchAttention


def choose_attention(shape: AttentionShape, device: torch.device) -> tuple[type[AttentionBackend], str]:
    """(backend, reason for the operator) for a model on a device."""
    return TorchAttention, f"torch operations run on every device ({device.type})"
