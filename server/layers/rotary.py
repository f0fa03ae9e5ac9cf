"""Rotary position embedding (Su et al., 2021), with the scalings of checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor

from server.layers.rope_scaling import NEEDED, SCALINGS
from server.layers.spec import RotarySpec


def inverse_frequencies(spec: RotarySpec, max_length: int) -> tuple[Tensor, float]:
    """(inverse frequencies float32 [dim / 2] or [max_length, dim / 2], scale of cos and sin).

    Raises:
        ValueError: a scaling that is not supported, or one that lacks a parameter.
    """
    kind, rope, trained = spec.kind, dict(spec.parameters), spec.trained_length
    if kind not in SCALINGS:
        supported = ", ".join(SCALINGS)
        raise ValueError(f"rope_parameters: rope scaling {kind!r} is not supported (supported: {supported})")
    if kind == "yarn" and rope.get("factor") is None and trained is not None:
        rope["factor"] = trained / rope["original_max_position_embeddings"]
    for name in NEEDED.get(kind, ()):
        if not rope.get(name):
            raise ValueError(f"rope_parameters: rope scaling {kind!r} says no {name}")
    exponents = torch.arange(0, spec.dim, 2, dtype=torch.float32) / spec.dim
    about = {"rope_theta": spec.theta, "max_position_embeddings": trained, "max_length": max_length}
    return SCALINGS[kind](1.0 / (spec.theta**exponents), rope | about)


def length_note(spec: RotarySpec, max_length: int) -> str | None:
    """How angles depend on the length that is served, for the operator; None: they do not."""
    trained = spec.trained_length
    if spec.kind == "dynamic" and trained is not None and max_length > trained + 1:
        return f"dynamic: behind {trained} tokens each position has the base of a sequence that ends there"
    original = spec.parameters.get("original_max_position_embeddings")
    if spec.kind != "longrope" or original is None:
        return None
    if max_length <= original + 1:
        return f"longrope: factors of short sequences, for model_max_length is at most {original + 1}"
    advice = f"set model_max_length to at most {original + 1} for those of short ones"
    return f"longrope: factors of long sequences for all; {advice}"


class Rotary:
    """Cosines and sines [positions, dim] of every position up to `max_length`.

    Raises:
        ValueError: as `inverse_frequencies`.
    """

    def __init__(
        self, spec: RotarySpec, max_length: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        frequencies, scale = inverse_frequencies(spec, max_length)
        angles = torch.arange(max_length, dtype=torch.float32)[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        self.cos = (angles.cos() * scale).to(device=device, dtype=dtype)
        self.sin = (angles.sin() * scale).to(device=device, dtype=dtype)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) [tokens, 1, dim] for `rotate`."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [tokens, heads, head_dim]; pairs are the two halves of a head, as in transformers.

    Of a head with more numbers than there are cosines, only the first ones turn.
    """
    size = cos.shape[-1]
    if size < x.shape[-1]:
        return torch.cat((rotate(x[..., :size], cos, sin), x[..., size:]), dim=-1)
    half = size // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
