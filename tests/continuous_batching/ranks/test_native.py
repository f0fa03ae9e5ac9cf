"""The C++ pass of a model that is split: ranks exchange their parts within it."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import pytest

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.ops.cpu import backend
from tests.continuous_batching.ranks.threads import split_llm

CACHE = {"num_blocks": 200, "num_blocks_cpu": 0}


@pytest.mark.parametrize("room", [1, backend.EXCHANGED])
def test_long_and_short_steps(tiny_model: Path, room: int) -> None:
    """What the ranks exchange fits into their places at once, or only a few rows of it do."""
    dice = random.Random(2)
    prompts = [[dice.randint(3, 250) for _ in range(length)] for length in (1, 70, 9, 33)]
    options = GenerationConfig(max_new_tokens=20)
    whole = LLM(
        tiny_model, model_loading_config={"torch_dtype": "float32", "device": "cpu"}, cache_config=CACHE
    )
    with mock.patch.object(backend, "EXCHANGED", room):
        split = split_llm(tiny_model, 2, cache_config=CACHE)
    kernels = split.capabilities["kernels"]
    assert kernels == whole.capabilities["kernels"] and kernels["name"].startswith("native")
    assert split.capabilities["ranks"]["collectives"]["name"] == "shared memory, gloo"
    assert split.capabilities["same_bits"]["promised"] is False
    expected = [generation.answers for generation in whole.generate(prompts, options)]
    assert [generation.answers for generation in split.generate(prompts, options)] == expected
