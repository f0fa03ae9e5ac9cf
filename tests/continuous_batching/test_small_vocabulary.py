"""What one request may ask of a model with twelve tokens is answered, or is that request's error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.llm import GenerationError
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm

TOKENS = 12
ALL = list(range(TOKENS))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path: Path = tiny_llama(tmp_path_factory.mktemp("model"))
    config = json.loads((path / "config.json").read_text()) | {"vocab_size": TOKENS}
    (path / "config.json").write_text(json.dumps(config))
    tensors = load_file(path / "model.safetensors")
    short = {name: t[:TOKENS].clone() if len(t) == 512 else t for name, t in tensors.items()}
    save_file(short, path / "model.safetensors", metadata={"format": "pt"})
    return small_llm(path)


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": 20},
        {"prompt_logprobs": 20},
        {"logprobs": 20, "num_beams": 16, "num_return_sequences": 16},
        {"num_beams": 4, "eos_token_id": ALL[:-1]},
        {"do_sample": True, "top_k": 500},
        {"do_sample": True, "typical_p": 0.01, "min_p": 1.0, "top_p": 0.01},
        {"logit_bias": dict.fromkeys(ALL, -100.0)},
        {"no_repeat_ngram_size": 1, "max_new_tokens": 30},
        {"repetition_penalty": 100.0, "presence_penalty": 2.0, "frequency_penalty": -2.0},
        {"bad_words_ids": [[token] for token in ALL]},
        {"bad_words_ids": [[token] for token in ALL if token != 2], "min_new_tokens": 2},
    ],
    ids=str,
)
def test_what_can_be_answered_is(llm: LLM, options: dict[str, object]) -> None:
    config = GenerationConfig.model_validate({"max_new_tokens": 4, **options})
    (generation,) = llm.generate([[5, 6, 7]], config)
    answers = generation.answers
    assert len(answers) == config.num_choices
    assert all(token < TOKENS for answer in answers for token in answer.token_ids)
    llm.engine.check()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"eos_token_id": ALL, "min_new_tokens": 2}, "eos_token_id"),
        ({"eos_token_id": ALL[:6], "stop_token_ids": ALL[6:], "min_new_tokens": 2}, "stop_token_ids"),
        ({"eos_token_id": ALL, "num_beams": 2}, "eos_token_id"),
        ({"logit_bias": {TOKENS: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [TOKENS]}, "allowed_token_ids"),
    ],
    ids=str,
)
def test_what_cannot_is_refused_by_name(llm: LLM, options: dict[str, object], field: str) -> None:
    config = GenerationConfig.model_validate({"max_new_tokens": 4, **options})
    with pytest.raises(GenerationError, match=f"^{field}: "):
        llm.generate([[5, 6, 7]], config)
    (generation,) = llm.generate([[5, 6, 7]], GenerationConfig(max_new_tokens=2))
    assert len(generation.answers[0].token_ids) >= 1
