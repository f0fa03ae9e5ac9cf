"""Rotary embeddings of checkpoints that scale them, against transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from server.layers.rotary import inverse_frequencies
from server.models.reading import rotary

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
    frequencies, own_scale = inverse_frequencies(rotary(model), TRAINED)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0.0)
    assert own_scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("length", [TRAINED, TRAINED + 1, TRAINED + 2, 3 * TRAINED])
def test_dynamic_scaling_grows_with_the_position(length: int) -> None:
    """Each has the frequencies that transformers gives to a sequence that ends there."""
    model = config({"rope_type": "dynamic", "factor": 2.0})
    frequencies, _ = inverse_frequencies(rotary(model), length)
    for position in (0, TRAINED - 1, TRAINED, length - 1):
        own = frequencies if length <= TRAINED + 1 else frequencies[min(position, length - 1)]
        reached = torch.tensor(position + 1 if length > TRAINED + 1 else 1)
        expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](model, torch.device("cpu"), seq_len=reached)
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=0.0)


def long_config(**scaling: Any) -> Phi3Config:
    """With heads of which three quarters rotate."""
    factors = {"short_factor": [1.0 + i / 9 for i in range(24)], "long_factor": [2.0 + i for i in range(24)]}
    return Phi3Config(
        hidden_size=8 * 64,
        num_attention_heads=8,
        partial_rotary_factor=0.75,
        rope_scaling={"rope_type": "longrope", **factors, **scaling},
        max_position_embeddings=TRAINED,
        original_max_position_embeddings=1024,
    )


@pytest.mark.parametrize("length", [1024, 1025, 1026, TRAINED])
@pytest.mark.parametrize("scaling", [{}, {"factor": 3.0}, {"attention_factor": 1.3}], ids=str)
def test_long_sequences_have_factors_of_their_own(scaling: dict[str, Any], length: int) -> None:
    model = long_config(**scaling)
    computed = length - 1  # the last token is not
    expected, scale = ROPE_INIT_FUNCTIONS["longrope"](model, torch.device("cpu"), seq_len=computed)
    frequencies, own_scale = inverse_frequencies(rotary(model, partial=True), length)
    torch.testing.assert_close(frequencies, expected, rtol=1e-6, atol=0.0)
    assert own_scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("part", [0.25, 0.6, 1.0])
def test_a_proportional_embedding_keeps_its_size(part: float) -> None:
    model = config({"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": part})
    expected, _ = ROPE_INIT_FUNCTIONS["proportional"](model, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(rotary(model), TRAINED)[0], expected)


def test_a_scaling_without_its_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="'linear' says no factor"):
        inverse_frequencies(rotary(config({"rope_type": "linear", "factor": None})), TRAINED)
    model = rotary(long_config(long_factor=[1.0] * 24), partial=True)
    del model.parameters["short_factor"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'longrope' says no short_factor"):
        inverse_frequencies(model, TRAINED)


def test_an_unknown_scaling_is_refused() -> None:
    model = rotary(config({"rope_type": "default"}))
    with pytest.raises(ValueError, match=r"rope scaling 'spiral' is not supported \(supported: default"):
        inverse_frequencies(replace(model, kind="spiral"), TRAINED)
