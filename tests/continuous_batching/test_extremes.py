"""The farthest values that a request may set are answered, beside others and without a trace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM
from server.scheduling import step_builder
from server.scheduling.request import Request
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm

EXTREMES: list[dict[str, Any]] = [
    {"top_k": 2**31 - 1},
    {"top_k": 2**31 - 1, "do_sample": True},
    {"temperature": 1e-50, "do_sample": True, "logprobs": 3},
    {"temperature": 1e6, "do_sample": True, "min_new_tokens": 9},
    {"repetition_penalty": 0.01, "do_sample": True},
    {"repetition_penalty": 100, "do_sample": True, "temperature": 1e-8},
    {"repetition_penalty": 0.01},
    {"top_p": 5e-324, "min_p": 5e-324, "typical_p": 5e-324, "do_sample": True},
    {"seed": 2**63 - 1, "do_sample": True},
    {"num_beams": 2, "length_penalty": 10},
    {"num_beams": 2, "length_penalty": -10},
    {"num_beams": 2, "length_penalty": 10, "early_stopping": "never", "logit_bias": {"7": 100}},
]


def test_every_extreme_is_answered(tiny_model: Path) -> None:
    llm = small_llm(tiny_model)
    rest = {"max_new_tokens": 12, "ignore_eos": True}
    configs = [GenerationConfig(**rest | options) for options in EXTREMES]
    for config, generation in zip(configs, llm.generate([[5, 6, 7]] * len(configs), configs), strict=True):
        assert len(generation.answers) == config.num_choices
        for answer in generation.answers:
            assert len(answer.token_ids) == 12 and answer.finish_reason == "length"
            assert all(0 <= token < 512 for token in answer.token_ids)
    assert llm.engine.stats().step_failures == 0
    llm.engine.check()


def test_a_model_that_computes_nan_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(path)
    model.lm_head.weight.data[3, 5] = float("nan")
    model.save_pretrained(path)
    with pytest.raises(ModelError, match="computes NaN: try another torch_dtype"):
        small_llm(path)


WIDE: dict[str, Any] = {"num_beams": 17, "n": 17, "do_sample": True, "temperature": 1e-6}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2, "length_penalty": -5, "max_new_tokens": 40},
        {"num_beams": 4, "n": 4, "length_penalty": -10, "max_new_tokens": 300},
        {"num_beams": 4, "n": 4, "length_penalty": 10, "max_new_tokens": 300, "early_stopping": "never"},
        {"num_beams": 4, "n": 4, "length_penalty": -10, "eos_token_id": list(range(3, 200)), "stop": "e"},
        {**WIDE, "max_new_tokens": 60},
        {**WIDE, "top_k": 1, "ignore_eos": True, "max_new_tokens": 20},
        {**WIDE, "top_k": 1, "repetition_penalty": 100, "max_new_tokens": 150},
        {**WIDE, "top_k": 2, "stop": ["e", "a", "o"], "max_new_tokens": 60},
        {**WIDE, "eos_token_id": list(range(3, 500)), "max_new_tokens": 60},
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_answer_of_a_beam_search_is_lost(tiny_model: Path, options: dict[str, Any]) -> None:
    """Scores may leave any bound: a finished answer is still better than none."""
    llm = small_llm(tiny_model)
    config = GenerationConfig(**options)
    (generation,) = llm.generate([[5, 6, 7]], config)
    assert len(generation.answers) == config.num_choices
    for answer in generation.answers:
        assert answer.token_ids and answer.finish_reason in ("stop", "length")
        assert answer.finish_reason == "stop" or len(answer.token_ids) == config.max_new_tokens
    llm.engine.check()


def break_for(request_id: str, llm: LLM, method: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a method that takes a request or one of its sequences fail for that request; counts how often."""
    owner: Any = step_builder if method == "_starts" else llm.engine._collector
    healthy, failed = getattr(owner, method), [0]

    def broken(first: Any, *rest: Any) -> Any:
        subject = first[0] if isinstance(first, list) else first
        request = subject if isinstance(subject, Request) else subject.request
        if request.id == request_id:
            failed[0] += 1
            raise OverflowError("the number is too large")
        return healthy(first, *rest)

    monkeypatch.setattr(owner, method, broken)
    return failed


@pytest.mark.parametrize("method", ["_starts", "_append", "_advance_beams"])
def test_a_fault_in_the_bookkeeping_fails_its_request_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    prompt = [(31 * i) % 400 + 3 for i in range(30)]
    beams = {"num_beams": 3} if method == "_advance_beams" else {}
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True, **beams}
    undisturbed = Driver(small_llm(tiny_model))
    undisturbed.add("good", [*prompt, 9], options)
    undisturbed.finish()

    llm = small_llm(tiny_model)
    failed = break_for("bad", llm, method, monkeypatch)
    driver = Driver(llm)
    driver.add("bad", prompt, options)
    driver.add("good", [*prompt, 9], options)  # reuses blocks that the other was to compute
    driver.finish()
    assert failed[0]
    assert set(driver.failures) == {"bad"} and driver.failures["bad"].status == 422
    assert "the number is too large" in driver.failures["bad"].message
    assert driver.answers("good") == undisturbed.answers("good")


def test_a_fault_on_the_way_back_from_swap_fails_its_request_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that comes back joins in a step in which it computes nothing."""
    llm = small_llm(tiny_model, num_blocks=14, num_blocks_cpu=40, watermark=0.0, swap_policy="swap", beams=4)
    driver = Driver(llm)
    for name in ("first", "second"):
        driver.add(name, [5, 6, 7], {"max_new_tokens": 90, "ignore_eos": True})
    while not llm.engine.stats().swapped:
        driver.step()
    assert llm.engine.scheduler.queues.swapped[0].id == "second"
    break_for("second", llm, "_starts", monkeypatch)
    driver.finish()
    assert set(driver.failures) == {"second"} and driver.done == {"first"}
    assert len(driver.answers("first")[0]) == 90
