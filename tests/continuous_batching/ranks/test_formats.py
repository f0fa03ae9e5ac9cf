"""Split quantized weights are those of the whole; what cannot be split is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.models.config import ModelConfig
from tests.checkpoints import tiny_llama
from tests.continuous_batching.ranks.threads import split_llm
from tests.models.small_models import EVEN, save
from tests.quantization.models import quantized, shuffle_groups
from tests.quantization.others import make
from tests.quantization.test_other_formats import MADE

PROMPTS = [[0, 17, 250, 99, 3, 41, 42, 300], [5], [7, 8, 9, 10]]
OPTIONS = GenerationConfig(max_new_tokens=12, ignore_eos=True)
SIZES: dict[str, Any] = {"cache_config": {"num_blocks": 64}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float Llama whose attention has biases."""
    return tiny_llama(tmp_path_factory.mktemp("llama"), hidden=256, attention_bias=True)


def answers(llm: LLM) -> list[list[int]]:
    return [generation.answers[0].token_ids for generation in llm.generate(PROMPTS, OPTIONS)]


def check(path: Path, ranks: int) -> None:
    loading = {"quantization": "auto", "torch_dtype": "float32", "device": "cpu"}
    whole = LLM(path, model_loading_config=loading, **SIZES)
    parts = split_llm(path, ranks, model_loading_config=loading, **SIZES)
    assert answers(parts) == answers(whole)


RECIPES: list[dict[str, Any]] = [
    {"group_size": 32},
    {"group_size": 64, "sym": False},
    {"group_size": -1},
    {"bits": 8, "group_size": 32},
]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_gptq(llama: Path, tmp_path: Path, recipe: dict[str, Any], ranks: int) -> None:
    check(quantized(llama, tmp_path / "gptq", **recipe), ranks)


QUICK = {"awq", "W4A16 by output", "FP8 by block"}
"""Codes, codes without groups, and what becomes floats; the others at night."""


@pytest.mark.parametrize(
    "what", [what if what in QUICK else pytest.param(what, marks=pytest.mark.slow) for what in MADE]
)
def test_other_formats(llama: Path, tmp_path: Path, what: str) -> None:
    check(make(llama, tmp_path, *MADE[what])[0], 2)


@pytest.mark.parametrize(
    ("family", "layout"), [("gpt_neox", {"num_key_value_heads": None, "head_dim": None}), ("glm", {})]
)
def test_codes_that_are_stored_in_another_order(tmp_path: Path, family: str, layout: dict[str, Any]) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, **layout}
    check(quantized(save(tmp_path / "float", family, sizes), tmp_path / "gptq", group_size=32), 2)


def refusal(path: Path, ranks: int, **loading: Any) -> str:
    with pytest.raises(ModelError) as caught:
        split_llm(path, ranks, model_loading_config=loading, **SIZES)
    return str(caught.value)


def test_groups_that_are_spread_over_all_ranks(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "gptq", group_size=32)
    shuffle_groups(path, {"o_proj": 3})
    message = refusal(path, 2, quantization="gptq")
    assert "cannot be split over 2 ranks: desc_act spreads the inputs of a group over all ranks" in message


def test_groups_that_are_too_large(llama: Path, tmp_path: Path) -> None:
    path = quantized(llama, tmp_path / "gptq", group_size=128)
    message = refusal(path, 4, quantization="gptq")
    assert "o_proj: 64 inputs are not a multiple of the group size" in message


def test_sizes_that_cannot_be_divided(llama: Path) -> None:
    assert "cannot be split over 3 ranks: 4 heads are no multiple of it (layer 0)" in refusal(llama, 3)


def test_models_of_other_modules(tmp_path: Path) -> None:
    message = (
        "model type 'arcee' is computed by modules that cannot be split over 2 ranks: set parallel_config"
    )
    with pytest.raises(ModelError, match=message):
        ModelConfig.load(save(tmp_path, "arcee", EVEN)).split(2)
