"""How checkpoints stretch rotary embeddings to more positions than they were first trained on.

Each function takes the inverse frequencies of the unscaled embedding, [dim / 2], and the checkpoint's
``rope_parameters``, in the names that transformers gives them, besides ``max_position_embeddings`` (the
trained length) and ``max_length`` (of the sequences that are served). It returns frequencies for all
positions, [dim / 2], or for each, [max_length, dim / 2], and what cosines and sines are multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Parameters = Mapping[str, Any]


def _linear(frequencies: Tensor, rope: Parameters) -> tuple[Tensor, float]:
    """Position interpolation (Chen et al., 2023): all positions closer together."""
    return frequencies / rope["factor"], 1.0


def _llama3(frequencies: Tensor, rope: Parameters) -> tuple[Tensor, float]:
    """Llama 3.1: waves that turned often within the trained length stay, slow ones are interpolated."""
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"]), 1.0


def _yarn(frequencies: Tensor, rope: Parameters) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023): as Llama 3.1, with a ramp over dimensions and a scale of the scores."""
    count, trained = len(frequencies), rope["original_max_position_embeddings"]

    def dimension(turns: float) -> float:
        """Index of the frequency that turns so often within the trained length."""
        return count * math.log(trained / (turns * 2 * math.pi)) / math.log(rope["rope_theta"])

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    ramp = (torch.arange(count, dtype=torch.float32) - low) / ((high - low) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"]), _yarn_scale(rope)


def _yarn_scale(rope: Parameters) -> float:
    """What cosines and sines are multiplied by, so that scores keep their sharpness."""
    given = rope.get("attention_factor")
    if given is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    weight, weight_all = rope.get("mscale"), rope.get("mscale_all_dim")
    return scale(weight) / scale(weight_all) if weight and weight_all else scale(1.0)


def _dynamic(frequencies: Tensor, rope: Parameters) -> tuple[Tensor, float]:
    """A base that grows with the length (NTK-aware): each position has that of a sequence that ends there.

    So a token is the same however a prompt is cut. It is what transformers computes token by token; a prompt
    longer than the trained length it gives, in one piece, the base of the whole prompt.
    """
    count, trained, factor = len(frequencies), rope["max_position_embeddings"], rope["factor"]
    if rope["max_length"] <= trained + 1:  # the last token is not computed
        return frequencies, 1.0
    lengths = torch.arange(1, rope["max_length"] + 1, dtype=torch.float32).clamp(min=trained)
    growth = (factor * lengths / trained - (factor - 1)) ** (count / (count - 1))
    exponents = torch.arange(count, dtype=torch.float32) / count
    return 1.0 / (rope["rope_theta"] * growth[:, None]) ** exponents, 1.0


def _longrope(frequencies: Tensor, rope: Parameters) -> tuple[Tensor, float]:
    """LongRoPE (Ding et al., 2024): a factor for each dimension, by two sets, for short and long sequences.

    A server takes the long one for all sequences if any may be longer than the model was first trained on.
    transformers takes it once a sequence is, and then computes all of it anew.
    """
    original = rope["original_max_position_embeddings"]
    long = rope["max_length"] > original + 1  # the last token is not computed
    factors = torch.tensor(rope["long_factor" if long else "short_factor"], dtype=torch.float32)
    given = rope.get("attention_factor")
    if given is not None:
        return frequencies / factors, float(given)
    stretch = rope.get("factor") or rope["max_position_embeddings"] / original
    return frequencies / factors, math.sqrt(
        1 + math.log(stretch) / math.log(original)
    ) if stretch > 1 else 1.0


def _proportional(frequencies: Tensor, rope: Parameters) -> tuple[Tensor, float]:
    """The first part of the pairs rotates, as fast as without the others, which stay."""
    turning = int(rope.get("partial_rotary_factor", 1.0) * len(frequencies))
    places = torch.arange(len(frequencies))
    return frequencies.where(places < turning, torch.tensor(0.0)) / (rope.get("factor") or 1.0), 1.0


SCALINGS: dict[str, Callable[[Tensor, Parameters], tuple[Tensor, float]]] = {
    "default": lambda frequencies, _: (frequencies, 1.0),
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
}
"""(scaled inverse frequencies, factor of cosines and sines) by ``rope_type``."""

NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Parameters that a scaling cannot do without."""
