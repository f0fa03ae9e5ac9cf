"""Windows of attention are served; what begins at a length and is not supported is refused from there on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.ops.cpu.attention import NativeAttention
from tests.checkpoints import tiny_tokenizer
from tests.continuous_batching.reference import Reference

WINDOW = 32
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 16},
}


def save(path: Path, kind: str, **fields: Any) -> Path:
    """A random model that reads at most 256 tokens unless `fields` say otherwise."""
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "initializer_range": 0.2,
        "max_position_embeddings": 256,
    }
    tiny_tokenizer(path)
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **(sizes | fields))
    AutoModelForCausalLM.from_config(config).float().save_pretrained(path)
    return path


def engine(path: Path, length: int | None) -> LLM:
    loading = {"torch_dtype": "float32", "device": "cpu", "model_max_length": length}
    return LLM(path, model_loading_config=loading, cache_config={"num_blocks": 64})


def assert_served(path: Path, length: int | None, tokens: int = 60) -> None:
    """Served at `length`, and sequences of `tokens` are transformers' to the last token."""
    prompt = random.Random(1).choices(range(3, 500), k=tokens - 8)
    (generation,) = engine(path, length).generate(
        [prompt], GenerationConfig(max_new_tokens=8, eos_token_id=511)
    )
    expected = Reference(path).answers(prompt, GenerationConfig(max_new_tokens=8, eos_token_id=511))
    assert [answer.token_ids for answer in generation.answers] == expected


def assert_refused(path: Path, length: int | None, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        engine(path, length)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", SLIDING)
def test_a_window_is_served_at_every_length(kind: str, tmp_path: Path) -> None:
    """Up to one token more than the window it changes nothing, as the last token is not computed."""
    path = save(tmp_path, kind, sliding_window=WINDOW, **SLIDING[kind])
    for length in (WINDOW, WINDOW + 1, WINDOW + 2, 100):
        assert_served(path, length, tokens=length)
    assert_served(path, None, tokens=256)


def test_kernels_without_windows_serve_what_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason tells why another backend runs, where the window matters."""
    less = replace(NativeAttention.capabilities, features=frozenset())
    monkeypatch.setattr(NativeAttention, "capabilities", less)
    path = save(tmp_path, "mistral", sliding_window=WINDOW)
    assert engine(path, WINDOW + 1).capabilities["attention"]["name"] == "native"
    chosen = engine(path, WINDOW + 2).capabilities["attention"]
    assert chosen["name"] == "torch" and f"a window of {WINDOW} tokens (layer 0)" in chosen["reason"]


@pytest.mark.parametrize("key", ["sliding_window", "attention_chunk_size"])
@pytest.mark.parametrize("kind", ["llama", "cohere", "gemma", "glm", "gpt_neox", "granite", "arcee"])
def test_a_window_that_only_a_cache_heeds_is_refused(kind: str, key: str, tmp_path: Path) -> None:
    """transformers' models of these have no window, but its cache forgets what is outside of one."""
    path = save(tmp_path, kind, pad_token_id=2, num_key_value_heads=4, **{key: WINDOW})
    assert_served(path, WINDOW + 1, tokens=WINDOW + 1)
    said = f"a window of {WINDOW} tokens is not supported for model_max_length"
    assert_refused(path, WINDOW + 2, f"{said} {WINDOW + 2}: set it to at most {WINDOW + 1}")
    assert_refused(path, None, f"{said} 256")


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_a_cache_goes_by_the_types_of_layers_where_there_are_any(kind: str, tmp_path: Path) -> None:
    assert_served(save(tmp_path / "full", kind, sliding_window=4, layer_types=["full_attention"] * 2), 100)
    path = save(tmp_path / "sliding", kind, sliding_window=4, layer_types=["sliding_attention"] * 2)
    assert_refused(path, 100, "layer_types: 'sliding_attention' is not supported")


def test_the_length_at_which_a_window_matters_is_transformers_own(tmp_path: Path) -> None:
    """Proof of the bound above: the first token computed behind a window of others has other logits."""
    path = save(tmp_path, "mistral", sliding_window=WINDOW)
    ids = torch.randint(3, 500, (1, WINDOW + 4), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        windowed, full = (
            AutoModelForCausalLM.from_pretrained(path, sliding_window=size)(ids).logits[0]
            for size in (WINDOW, None)
        )
    differs = (windowed - full).abs().amax(-1) > 1e-4
    assert differs.nonzero()[0].item() == WINDOW


@pytest.mark.parametrize("kind", SLIDING)
def test_a_window_as_long_as_the_trained_length(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path, kind, sliding_window=64, max_position_embeddings=64, **SLIDING[kind])
    assert_served(path, None)
    assert_served(path, 200, tokens=150)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 4096}),
        ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": False}),
        ("qwen3", {"sliding_window": WINDOW, "use_sliding_window": False, "head_dim": 16}),
        ("qwen2", {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
        (
            "qwen2",
            {"sliding_window": WINDOW, "use_sliding_window": True, "layer_types": ["full_attention"] * 2},
        ),
    ],
    ids=["none", "long", "unused", "unused in qwen3", "of no layer", "of no layer by layer_types"],
)
def test_a_window_without_effect_is_no_obstacle(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    assert_served(save(tmp_path, kind, **fields), 400)


def test_layers_with_windows_by_layer_types(tmp_path: Path) -> None:
    fields = {"layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 9}
    path = save(tmp_path, "qwen2", sliding_window=WINDOW, use_sliding_window=True, **fields)
    assert_served(path, 400, tokens=150)


@pytest.mark.parametrize(
    ("kind", "text", "other", "said"),
    [
        ("mistral", '"sliding_window": 32', '"sliding_window": 0', "a sliding_window of 0 tokens"),
        ("mistral", '"sliding_window": 32', '"sliding_window": "32"', "sliding_window"),
        ("qwen2", '"full_attention"', '"sliding_attention"', "the configuration has no sliding_window"),
        ("qwen2", '"full_attention"', '"linear_attention"', "'linear_attention' is not supported"),
        ("qwen2", '"num_hidden_layers": 2', '"num_hidden_layers": 3', "layer_types"),
    ],
    ids=["zero", "no number", "layers without", "another kind", "of other layers"],
)
def test_configurations_that_transformers_cannot_run_either(
    kind: str, text: str, other: str, said: str, tmp_path: Path
) -> None:
    path = save(tmp_path, kind, **({"sliding_window": WINDOW} if kind == "mistral" else {}))
    config = (path / "config.json").read_text()
    assert text in config
    (path / "config.json").write_text(config.replace(text, other))
    assert_refused(path, 400, said)


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_other_scalings_reach_beyond_the_trained_length(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
    path = save(tmp_path, "qwen2", rope_parameters=rope, max_position_embeddings=64)
    assert_served(path, 200, tokens=150)


def test_a_scaling_of_a_part_of_each_head_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    path = save(tmp_path, "llama", rope_parameters=rope)
    assert_refused(path, None, "'linear' with a partial_rotary_factor is not supported")
