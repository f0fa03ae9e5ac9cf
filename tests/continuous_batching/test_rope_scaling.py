"""Rotary embeddings of checkpoints that scale them, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from server.continuous_batching.layers.rotary import inverse_frequencies

TRAINED = 4096


def config(scaling: dict[str, Any], head_dim: int = 64) -> LlamaConfig:
    """Of a model with such a ``rope_scaling``."""
    return LlamaConfig(
        hidden_size=8 * head_dim,
        num_attention_heads=8,
        head_dim=head_dim,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        max_position_embeddings=TRAINED,
    )


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
        {"type": "yarn", "factor": 4.0},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "truncate": False},
        {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 1.2, "mscale_all_dim": 0.7},
        {"rope_type": "yarn", "factor": 2.5, "attention_factor": 0.7, "beta_fast": 20, "beta_slow": 2},
    ],
    ids=lambda scaling: "-".join(str(value) for value in scaling.values()),
)
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, Any], head_dim: int) -> None:
    model = config(scaling, head_dim)
    expected, scale = ROPE_INIT_FUNCTIONS[model.rope_parameters["rope_type"]](model, torch.device("cpu"))
    frequencies, own_scale = inverse_frequencies(model, TRAINED)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0.0)
    assert own_scale == pytest.approx(scale, rel=1e-12)


def test_dynamic_scaling_is_none_up_to_the_trained_length() -> None:
    model = config({"rope_type": "dynamic", "factor": 2.0})
    unscaled, _ = inverse_frequencies(config({"rope_type": "default"}), TRAINED)
    assert torch.equal(inverse_frequencies(model, TRAINED)[0], unscaled)
    with pytest.raises(ValueError, match="'dynamic' is not supported for model_max_length 4097"):
        inverse_frequencies(model, TRAINED + 1)


def test_a_scaling_without_its_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="'linear' says no factor"):
        inverse_frequencies(config({"rope_type": "linear", "factor": None}), TRAINED)
