"""Answers that are held to a form, beside others, whatever becomes of them on the way."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM, grammars
from server.continuous_batching.llm import GenerationError
from server.static_batching.pipeline import StaticPipeline
from server.text.grammars.compiler import GrammarCompiler
from server.text.grammars.source import GrammarError
from server.text.grammars.state import GrammarState
from tests.continuous_batching.drafts import drafting_llm
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import overlapped_llm

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "ages": {"type": "array", "maxItems": 4}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}
SCHEMA["properties"]["ages"]["items"] = {"type": "integer", "minimum": 0, "maximum": 99}  # type: ignore[index]
PATTERN = r"[a-c]{3}-\d{12,20}"
CHOICE = ["yes", "no", "perhaps"]

Options = dict[str, Any]


def options(kind: str, seed: int) -> Options:
    """Of a request with a form, or without."""
    forms: dict[str, Options] = {
        "json": {"json": SCHEMA}, "regex": {"regex": PATTERN}, "choice": {"choice": CHOICE}, "plain": {},
    }  # fmt: skip
    common = {"do_sample": True, "seed": seed, "max_new_tokens": 120}
    form = forms[kind]
    return common | ({"structured_outputs": form} if form else {"ignore_eos": True, "max_new_tokens": 30})


KINDS = ("json", "regex", "choice", "plain")
REQUESTS = [
    ([5 + i, 7, 9] * (1 + i % 3), options(KINDS[i % 4], i) | ({"n": 2} if i % 5 == 0 else {}))
    for i in range(16)
]


FEW = 5
"""Requests for engines whose kernels are interpreted."""


def texts(llm: LLM, count: int = len(REQUESTS)) -> list[list[str]]:
    requests = REQUESTS[:count]
    generations = llm.generate([p for p, _ in requests], [GenerationConfig(**o) for _, o in requests])
    llm.engine.check()
    assert llm.engine.stats().cache_usage == 0.0
    return [[answer.text for answer in generation.answers] for generation in generations]


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> list[list[str]]:
    """What the other strategy answers: package by package, by transformers."""
    pipeline = StaticPipeline(tiny_model, worker_config={"device": "cpu", "torch_dtype": "float32"})
    generations = pipeline.generate([p for p, _ in REQUESTS], [GenerationConfig(**o) for _, o in REQUESTS])
    return [[answer.text for answer in generation.answers] for generation in generations]


def test_answers_have_their_form(expected: list[list[str]]) -> None:
    for (_, given), answers in zip(REQUESTS, expected, strict=True):
        form = given.get("structured_outputs", {})
        for text in answers:
            if "json" in form:
                jsonschema_rs.validate(SCHEMA, json.loads(text))
            elif "regex" in form:
                assert re.fullmatch(PATTERN, text)
            elif form:
                assert text in CHOICE


def test_both_servers_answer_alike(tiny_model: Path, expected: list[list[str]]) -> None:
    assert texts(small_llm(tiny_model)) == expected


@pytest.mark.parametrize("num_blocks_cpu", [60, 0])
def test_under_swap_and_recomputation(
    tiny_model: Path, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch, num_blocks_cpu: int
) -> None:
    monkeypatch.setattr(grammars, "QUICK_SECONDS", 60.0)  # a busy machine does not thin out the batch
    llm = small_llm(
        tiny_model,
        num_blocks=32,
        num_blocks_cpu=num_blocks_cpu,
        swap_policy="swap" if num_blocks_cpu else "auto",
    )
    for _ in range(10):  # at first, and on a busy machine, they wait for grammars rather than for room
        assert texts(llm) == expected
        stats = llm.engine.stats()
        if stats.preempted_by_swap if num_blocks_cpu else stats.preempted_by_recompute:
            return
    pytest.fail("nothing was preempted")


@pytest.mark.parametrize("replayed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_where_steps_overlap(
    tiny_model: Path, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch, replayed: bool
) -> None:
    """Masks follow from tokens that are read while the next forward pass runs."""
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=200, replayed=replayed)
    assert texts(llm, FEW) == expected[:FEW]
    assert llm.engine.stats().step_failures == 0


@pytest.mark.parametrize("overlapped", [False, True])
def test_masks_that_take_long_hold_nobody_up(
    tiny_model: Path, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch, overlapped: bool
) -> None:
    """Such rows sit out of the steps until their masks are there, and answer the same."""
    fill, ready = GrammarState.fill, threading.Event()
    monkeypatch.setattr(grammars, "QUICK_SECONDS", 0.0)
    monkeypatch.setattr(grammars, "PATIENCE_SECONDS", 0.0)

    def wait_and_fill(state: GrammarState, mask: Any) -> None:
        ready.wait(0.003)
        fill(state, mask)

    monkeypatch.setattr(GrammarState, "fill", wait_and_fill)
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=200) if overlapped else small_llm(tiny_model)
    steps: list[int] = []
    launch = llm.engine.worker.launch
    monkeypatch.setattr(
        llm.engine.worker, "launch", lambda step: steps.append(len(step.decode_slots)) or launch(step)
    )
    count = FEW if overlapped else len(REQUESTS)
    assert texts(llm, count) == expected[:count]
    assert len(set(steps)) > 3 and llm.engine.stats().step_failures == 0


def test_drafts_change_no_token(tiny_model: Path) -> None:
    """Also where they cross the end of what the form allows."""
    form = {"structured_outputs": {"regex": r"(ab ?){30}(cd){2}"}, "max_new_tokens": 200}
    llm = drafting_llm(tiny_model)
    sampled = form | {"do_sample": True, "seed": 3}
    for given in (form, sampled):
        plain, drafted = (
            llm.generate([[5, 6]], GenerationConfig(**given, prompt_lookup_num_tokens=count))[0].answers[0]
            for count in (0, 8)
        )
        assert plain.token_ids == drafted.token_ids and plain.finish_reason == "stop"
    stats = llm.engine.stats()
    assert stats.accepted_tokens > 10


@pytest.mark.parametrize("overlapped", [False, True])
def test_beams(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, overlapped: bool) -> None:
    """All of them have the form, which makes their prefixes meet; the best is the best of all there are."""
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=200) if overlapped else small_llm(tiny_model)
    beams = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 60}
    configs = [
        GenerationConfig(structured_outputs={"choice": CHOICE}, **beams),
        GenerationConfig(structured_outputs={"json": SCHEMA}, **beams),
        GenerationConfig(max_new_tokens=20, ignore_eos=True),
    ]
    chosen, objects, _ = llm.generate([[5, 6, 7], [8, 9], [4]], configs)
    assert {answer.text for answer in chosen.answers} == set(CHOICE)
    for answer in objects.answers:
        if answer.finish_reason == "stop":
            jsonschema_rs.validate(SCHEMA, json.loads(answer.text))
        else:
            assert len(answer.token_ids) == 60
    digits = {"choice": ["1", "2", "3"]}
    with pytest.raises(GenerationError, match="only 3 of 4 answers are possible"):
        llm.generate([[5, 6]], GenerationConfig(structured_outputs=digits, num_beams=4, n=4))
    llm.engine.check()


def test_an_answer_goes_on_elsewhere(tiny_model: Path) -> None:
    """From any of its tokens: where it stands in its form follows from them."""
    given = options("json", 11)
    whole = Driver(small_llm(tiny_model))
    whole.add("whole", [5, 6, 7], given)
    whole.finish()
    (tokens,) = whole.answers("whole")
    for cut in range(1, len(tokens) - 1, 3):
        rest = Driver(small_llm(tiny_model))
        rest.add("rest", [5, 6, 7], given, emitted=[tokens[:cut]])
        rest.finish()
        assert rest.answers("rest") == [tokens]


def test_tokens_that_do_not_follow_the_form_fail_their_request_alone(tiny_model: Path) -> None:
    driver = Driver(small_llm(tiny_model))
    driver.add("wrong", [5, 6], options("json", 1), emitted=[[50, 51]])
    driver.add("right", [5, 6], options("json", 1))
    driver.finish()
    failure = driver.failures["wrong"]
    assert failure.status == 422 and "do not follow" in failure.message
    assert failure.param == "structured_outputs" and driver.done == {"right"}


def test_a_bad_grammar_fails_its_request_alone(tiny_model: Path) -> None:
    driver = Driver(small_llm(tiny_model))
    driver.add("bad", [5, 6], {"structured_outputs": {"regex": "a(?=b)"}})
    driver.add("right", [5, 6], options("choice", 1))
    driver.add("cancelled", [5, 6], options("json", 1))
    driver.engine.cancel("cancelled")
    driver.finish()
    assert set(driver.failures) == {"bad"} and driver.done == {"right"}
    assert driver.failures["bad"].code == "invalid_grammar"


def test_a_grammar_that_breaks_in_the_middle(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has become too complex between two steps."""
    driver = Driver(small_llm(tiny_model))
    advance_all = GrammarState.advance_all

    def fail_after(states: Sequence[GrammarState], *more: Any) -> dict[int, GrammarError]:
        failed = {index: GrammarError("too complex") for index, state in enumerate(states) if len(state) == 5}
        return failed or advance_all(states, *more)

    monkeypatch.setattr(GrammarState, "advance_all", fail_after)
    driver.add("breaks", [5, 6], options("regex", 1))
    driver.add("plain", [5, 6], options("plain", 1))
    driver.finish()
    assert set(driver.failures) == {"breaks"} and driver.done == {"plain"}


def test_nothing_waits_for_a_grammar_that_is_compiled(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, go_on = Driver(small_llm(tiny_model)), threading.Event()
    compile_now = GrammarCompiler.compile

    def compile_late(compiler: GrammarCompiler, *args: Any) -> Any:
        assert go_on.wait(60)
        return compile_now(compiler, *args)

    monkeypatch.setattr(GrammarCompiler, "compile", compile_late)
    driver.add("form", [5, 6], options("choice", 1))
    driver.add("plain", [5, 6], options("plain", 1))
    while "plain" not in driver.done:
        driver.step()
    assert not driver.tokens["form"]
    go_on.set()
    driver.finish()
    assert driver.done == {"form", "plain"}


def test_an_answer_that_is_cut_off_is_told_as_such(tiny_model: Path) -> None:
    config = GenerationConfig(structured_outputs={"regex": "a{100}"}, max_new_tokens=5)
    (generation,) = small_llm(tiny_model).generate([[5, 6]], config)
    assert generation.answers[0].finish_reason == "length"
