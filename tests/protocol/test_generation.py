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
def test_numbers_that_cannot_be_computed_with_are_refused(option: dict[str, Any]) -> None:
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


def test_options_of_transformers_and_vllm_on_the_routes_of_openai() -> None:
    options: dict[str, Any] = {
        "no_repeat_ngram_size": 3,
        "bad_words": ["so", "be it"],
        "allowed_token_ids": [4, 5],
        "min_tokens": 2,
    }
    request = OpenAICompletionRequest.model_validate({"model": "m", "prompt": "x", **options})
    config = request.generation_config(max_new_tokens=5, logprobs=None)
    assert (config.no_repeat_ngram_size, config.allowed_token_ids, config.min_new_tokens) == (3, [4, 5], 2)
    assert config.bad_words == ["so", "be it"]


@pytest.mark.parametrize(
    "option",
    [
        {"bad_words": [""]},
        {"bad_words": ["x"] * 129},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[3] * 17]},
        {"bad_words_ids": [[-1]]},
        {"allowed_token_ids": []},
        {"allowed_token_ids": [2**31]},
    ],
)
def test_lists_of_words_that_are_none(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValidationError, match=name):
        GenerationConfig.model_validate(option)
