"""Rotary position embedding (Su et al., 2021), with the scalings of checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from server.continuous_batching.layers.rope_scaling import SCALINGS


def inverse_frequencies(hf_config: Any, max_length: int) -> tuple[Tensor, float]:
    """(inverse frequencies float32 [head_dim / 2], scale of cos and sin) for a checkpoint's config.

    Raises:
        ValueError: a scaling that is not supported at that length.
    """
    rope = hf_config.rope_parameters
    kind = rope["rope_type"]
    if kind == "dynamic" and max_length <= hf_config.max_position_embeddings:
        kind = "default"  # it changes nothing up to the trained length
    if kind not in SCALINGS:
        raise ValueError(
            f"rope scaling {kind!r} is not supported for model_max_length {max_length} "
            f"(supported: {', '.join(SCALINGS)}, and dynamic up to the trained length)"
        )
    if kind == "yarn" and rope.get("factor") is None:
        stretched = hf_config.max_position_embeddings / rope["original_max_position_embeddings"]
        rope = {**rope, "factor": stretched}
    if kind != "default" and not rope.get("factor"):
        raise ValueError(f"rope scaling {kind!r} says no factor")
    head_dim = getattr(hf_config, "head_dim", None) or hf_config.hidden_size // hf_config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return SCALINGS[kind](1.0 / (rope["rope_theta"] ** exponents), rope)


class Rotary:
    """Cosines and sines of every position up to `max_length`.

    Args:
        hf_config: configuration of the checkpoint.
        max_length: positions to prepare.
    """

    def __init__(self, hf_config: Any, max_length: int, *, dtype: torch.dtype, device: torch.device) -> None:
        frequencies, scale = inverse_frequencies(hf_config, max_length)
        angles = torch.arange(max_length, dtype=torch.float32)[:, None] * frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        self.cos = (angles.cos() * scale).to(device=device, dtype=dtype)
        self.sin = (angles.sin() * scale).to(device=device, dtype=dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) [tokens, 1, head_dim] for `rotate`."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [tokens, heads, head_dim]; pairs are the two halves of a head, as in transformers."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
