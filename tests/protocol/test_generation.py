"""Which numbers a request may ask for: what the engines could not compute with is refused here."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from protocol.generation import MIN_TEMPERATURE, GenerationConfig
from protocol.openai import OpenAICompletionRequest


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 2**31},
        {"top_k": -1},
        {"repetition_penalty": 0.009},
        {"repetition_penalty": 1e-308},
        {"repetition_penalty": 101},
        {"length_penalty": 10.5},
        {"length_penalty": -250},
        {"length_penalty": math.nan},
        {"temperature": -0.1},
        {"temperature": 1e39},
        {"seed": 2**63},
    ],
)
def test_numbers_that_nobody_can_compute_with_are_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValidationError, match=name):
        GenerationConfig.model_validate(option)
    if name not in ("seed", "top_k"):  # top_k -1 is vLLM's way to say none
        with pytest.raises(ValidationError, match=name):
            request = OpenAICompletionRequest.model_validate({"model": "m", "prompt": "x", **option})
            request.generation_config(max_new_tokens=5, logprobs=None)


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 2**31 - 1},
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100},
        {"length_penalty": 10},
        {"length_penalty": -10},
    ],
)
def test_the_bounds_themselves_are_accepted(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    assert getattr(GenerationConfig.model_validate(option), name) == value


@pytest.mark.parametrize("asked", [1e-6, 1e-8, 1e-50, 5e-324])
def test_a_temperature_below_the_least_is_the_least(asked: float) -> None:
    config = GenerationConfig(do_sample=True, temperature=asked)
    assert config.temperature == MIN_TEMPERATURE
    request = OpenAICompletionRequest(model="m", prompt="x", temperature=asked)
    config = request.generation_config(max_new_tokens=5, logprobs=None)
    assert config.do_sample and config.temperature == MIN_TEMPERATURE


def test_temperature_zero_is_greedy() -> None:
    assert GenerationConfig(temperature=0).temperature == 0.0
