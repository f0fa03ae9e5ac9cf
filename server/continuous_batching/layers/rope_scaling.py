"""How checkpoints stretch rotary embeddings to more positions than they were first trained on.

Each function takes the inverse frequencies of the unscaled embedding and the checkpoint's
``rope_parameters``, in the names that transformers gives them.
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


SCALINGS: dict[str, Callable[[Tensor, Parameters], tuple[Tensor, float]]] = {
    "default": lambda frequencies, _: (frequencies, 1.0),
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""(scaled inverse frequencies, factor of cosines and sines) by ``rope_type``."""
