"""The Python interfaces refuse what the servers refuse over HTTP, and take any number of prompts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.errors import ApiError
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.scheduling.params import SamplingParams
from server.scheduling.request import Request
from server.static_batching.pipeline import StaticPipeline
from server.text.checks import ModelSize, check_config
from tests.checkpoints import tiny_llama
from tests.continuous_batching.engines import small_llm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"), max_position_embeddings=256)


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return small_llm(checkpoint, max_length=256)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> StaticPipeline:
    return StaticPipeline(checkpoint, worker_config={"device": "cpu"})


@pytest.fixture(params=["llm", "pipeline"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def changed(**options: Any) -> GenerationConfig:
    """Options that pydantic has not checked."""
    return GenerationConfig().model_copy(update=options)


GOOD = [5, 6, 7]


@pytest.mark.parametrize(
    ("prompts", "config", "said"),
    [
        ([GOOD, [5, 9999]], None, r"prompts\[1\]: token id 9999 is not below the vocabulary size 512"),
        ([[5, 512]], None, r"prompts\[0\]: token id 512"),
        ([[5, -1]], None, r"prompts\[0\]: token id -1 is negative"),
        ([GOOD, []], None, r"prompts\[1\]: the prompt is empty"),
        (["\ud800"], None, r"prompts\[0\]: the text cannot be tokenised"),
        (["a" * 10**7], None, r"prompts\[0\]: This model's maximum .* 10000000 characters"),
        ([[5] * 256], None, r"prompts\[0\]: This model's maximum .* the prompt has 256 tokens"),
        ([[5] * 250], None, r"max_new_tokens: This model's maximum .* the prompt has 250 tokens"),
        ([GOOD], GenerationConfig(max_new_tokens=10**9), "max_new_tokens: .* 1000000000 new ones"),
        ([GOOD], GenerationConfig(logit_bias={512: 1.0}), "logit_bias: token id 512"),
        ([GOOD], GenerationConfig(eos_token_id=512), "eos_token_id: token id 512"),
        ([GOOD], GenerationConfig(eos_token_id=[2, 512]), "eos_token_id: token id 512"),
        ([GOOD], GenerationConfig(stop_token_ids=[512]), "stop_token_ids: token id 512"),
        ([GOOD], GenerationConfig(pad_token_id=512), "pad_token_id: token id 512"),
        ([GOOD], GenerationConfig(eos_token_id=list(range(512)), num_beams=2), "eos_token_id: all 512"),
        ([GOOD], GenerationConfig(stop_token_ids=list(range(512)), min_new_tokens=2), "stop_token_ids: all"),
        ([GOOD] * 2, [GenerationConfig(), GenerationConfig(stop_token_ids=[512])], "stop_token_ids"),
        ([GOOD], changed(logit_bias={-1: 1.0}), "logit_bias"),
        ([GOOD], changed(stop_token_ids=[-1]), "stop_token_ids"),
        ([GOOD], changed(temperature=0.0, do_sample=True), "temperature"),
        ([GOOD], changed(max_new_tokens=0), "max_new_tokens"),
        ([GOOD], changed(n=2), "n: |several answers"),
        ([GOOD], changed(stop=[""]), "stop"),
        ([GOOD], changed(stop=["\ud800"]), "stop"),
        ([GOOD], {"max_new_tokens": 3}, "config must be a GenerationConfig"),
        ("Hello", None, "prompts must be a list"),
        (GOOD, None, r"prompts\[0\] must be a text or a list"),
        ([[5, 1.5]], None, r"prompts\[0\] must be a text or a list"),
        ([[5, True]], None, r"prompts\[0\] must be a text or a list"),
    ],
)
def test_what_a_server_refuses_is_refused_by_name(model: Any, prompts: Any, config: Any, said: str) -> None:
    with pytest.raises(Exception, match=said):
        model.generate(prompts, config)
    assert len(model.generate([GOOD], GenerationConfig(max_new_tokens=2))[0].answers[0].token_ids) == 2


def test_nothing_is_computed_for_prompts_of_which_one_is_refused(llm: LLM) -> None:
    steps = llm.engine.stats().steps
    with pytest.raises(Exception, match=r"prompts\[2\]: 40 sequences"):
        configs = [GenerationConfig(), GenerationConfig(), GenerationConfig(num_beams=40)]
        llm.generate([GOOD] * 3, configs)
    assert llm.engine.stats().steps == steps and not llm.engine.has_work


def test_numbers_of_other_libraries_are_token_ids(model: Any) -> None:
    config = GenerationConfig(max_new_tokens=4)
    (plain,) = model.generate([GOOD], config)
    (array,) = model.generate([np.array(GOOD)], config)
    assert array.answers[0].token_ids == plain.answers[0].token_ids and array.prompt_token_ids == GOOD


def test_more_prompts_than_a_servers_queue_holds(checkpoint: Path, llm: LLM) -> None:
    narrow = LLM(
        checkpoint,
        model_loading_config={"torch_dtype": "float32", "device": "cpu"},
        batcher_config={"max_waiting": 2, "batch_max_beams": 4},
        cache_config={"num_blocks": 100, "num_blocks_cpu": 0, "block_size": 8},
    )
    prompts: list[str | list[int]] = [[5 + i, 6, 7] for i in range(40)]
    config = GenerationConfig(max_new_tokens=3, ignore_eos=True)
    expected = [generation.answers[0].token_ids for generation in llm.generate(prompts, config)]
    assert [generation.answers[0].token_ids for generation in narrow.generate(prompts, config)] == expected
    narrow.engine.check()


@pytest.mark.parametrize(
    ("prompt", "params", "more", "said"),
    [
        ([], {}, {}, "no tokens"),
        ([5, 512], {}, {}, "prompt: token id 512"),
        ([5, -1], {}, {}, "prompt: token id -1"),
        ([5], {"options": {"logit_bias": {512: 1.0}}}, {}, "logit_bias: token id 512"),
        ([5], {"eos_token_ids": (-2,)}, {}, "eos_token_id: token id -2"),
        ([5], {"max_new_tokens": 0}, {}, "max_new_tokens"),
        ([5], {}, {"emitted": [[512]]}, "token id 512"),
    ],
)
def test_the_engine_itself_never_looks_outside_its_tables(
    llm: LLM, prompt: list[int], params: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    options = SamplingParams(**{"max_new_tokens": 4} | params)
    refusal = llm.engine.add(Request("odd", prompt, options, time.monotonic(), **more))
    assert refusal is not None and refusal.status == 422 and said in refusal.message
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    ("params", "emitted", "finished", "said"),
    [
        ({"num_choices": 2}, [[5]], [], "1 answers, the options ask for 2"),
        ({}, [[5], [6]], [], "2 answers, the options ask for 1"),
        ({}, [[5]], [0], "must be some, not all"),
        ({"num_choices": 2}, [[5], []], [2], "must be some, not all"),
        ({}, [[5] * 4], [], "has all of its tokens"),
        ({"num_beams": 2}, [[5]], [], "beam search"),
    ],
)
def test_a_request_cannot_be_continued_from_what_cannot_be_its_answers(
    params: dict[str, Any], emitted: list[list[int]], finished: list[int], said: str
) -> None:
    options = SamplingParams(**{"max_new_tokens": 4} | params)
    with pytest.raises(ValueError, match=said):
        Request("odd", [5], options, 0.0, emitted=emitted, finished_answers=frozenset(finished))


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("bad_words_ids", {"bad_words_ids": [[3], [4, 5, 12]]}),
        ("allowed_token_ids", {"allowed_token_ids": [3, 12]}),
        ("allowed_token_ids", {"allowed_token_ids": [3, 4], "bad_words_ids": [[4], [3], [5, 6]]}),
        ("allowed_token_ids", {"allowed_token_ids": [3], "stop_token_ids": [3], "min_new_tokens": 1}),
    ],
)
def test_lists_of_tokens_that_leave_nothing_or_do_not_exist(option: str, options: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match=option):
        check_config(ModelSize(12, 100), GenerationConfig(**options))


def test_lists_of_tokens_that_leave_something() -> None:
    options: dict[str, Any] = {"allowed_token_ids": [3, 11], "bad_words_ids": [[3], [11, 11]]}
    check_config(ModelSize(12, 100), GenerationConfig(**options))
