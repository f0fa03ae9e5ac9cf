"""Requests that end before their time take nothing with them and leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.continuous_batching import LLM
from server.sampling.step_logits import StepLogits
from server.scheduling.plan import Plan
from tests.continuous_batching.driver import Driver, around_forward
from tests.continuous_batching.engines import small_llm


def random_options(rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": rng.randint(1, 40)}
    kind = rng.randrange(4)
    if kind == 0:
        options |= {"do_sample": True, "n": rng.randint(1, 4), "seed": rng.randrange(100)}
    elif kind == 1:
        options |= {"num_beams": rng.randint(2, 4), "early_stopping": rng.choice([True, False, "never"])}
    return options


def test_a_thousand_cancelled_at_random_moments(tiny_model: Path) -> None:
    """Cancelled while waiting, computing, decoding or swapped out; the others are unaffected."""
    rng = random.Random(11)
    survivors = {
        f"survivor {i}": (rng.choices(range(3, 500), k=rng.randint(1, 40)), random_options(rng))
        for i in range(30)
    }
    undisturbed = Driver(small_llm(tiny_model, num_blocks=2000))
    for name, (prompt, options) in survivors.items():
        undisturbed.add(name, prompt, options)
    undisturbed.finish()

    driver = Driver(
        small_llm(tiny_model, num_blocks=60, num_blocks_cpu=40, watermark=0.0, swap_policy="swap")
    )
    engine = driver.engine
    waiting = list(survivors.items())
    alive: list[str] = []
    phases: dict[str, int] = {}
    for i in range(1000):
        name = f"victim {i}"
        driver.add(name, rng.choices(range(3, 500), k=rng.randint(1, 60)), random_options(rng))
        alive.append(name)
        if waiting and i % 30 == 0:
            survivor, (prompt, options) = waiting.pop()
            driver.add(survivor, prompt, options)
        driver.step()
        while len(alive) > 12:
            victim = alive.pop(rng.randrange(len(alive)))
            request = engine._requests.get(victim)
            phase = "done" if request is None else request.phase.value
            phases[phase] = phases.get(phase, 0) + 1
            engine.cancel(victim)
            engine.check()
    for victim in alive:
        engine.cancel(victim)
    for survivor, (prompt, options) in waiting:
        driver.add(survivor, prompt, options)
    driver.finish()
    assert {name: driver.answers(name) for name in survivors} == {
        name: undisturbed.answers(name) for name in survivors
    }
    assert min(phases.get(phase, 0) for phase in ("waiting", "running", "swapped")) > 5, phases


def test_a_late_request_is_given_up_and_an_early_one_is_not(tiny_model: Path) -> None:
    driver = Driver(small_llm(tiny_model, beams=1))
    driver.add("first", [5, 6, 7], {"max_new_tokens": 20, "ignore_eos": True})
    driver.add("late", [5, 6, 7], {"max_new_tokens": 20}, deadline=0.0)
    driver.finish()
    assert "first" in driver.done
    assert driver.failures["late"].status == 408


class Broken(Exception):
    """A fault of the forward pass."""


def break_forward(llm: LLM, monkeypatch: pytest.MonkeyPatch, poison: int) -> None:
    """Let every forward pass fail that computes the token `poison`."""

    def forward(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        tokens = [t for c in plan.chunks for t in c.sequence.history.slice(c.start, c.end)]
        if poison in tokens + [s.history.last for s in plan.decodes]:
            raise Broken("cannot compute this")
        return compute()

    around_forward(llm, forward)


def test_a_failing_request_fails_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = small_llm(tiny_model, num_blocks=2000)
    prompts = {f"good {i}": [(i * 31 + j) % 400 + 3 for j in range(20 + i)] for i in range(6)}
    healthy = Driver(llm)
    for name, prompt in prompts.items():
        healthy.add(name, prompt, {"max_new_tokens": 20, "logit_bias": {499: -100}})
    healthy.finish()

    llm = small_llm(tiny_model, num_blocks=2000)
    break_forward(llm, monkeypatch, poison=499)
    driver = Driver(llm)
    # the poisoned prompt begins like a good one, which therefore reuses blocks of the failed step
    driver.add("bad", [*prompts["good 5"][:17], 499, 5], {"max_new_tokens": 20})
    for name, prompt in prompts.items():
        driver.add(name, prompt, {"max_new_tokens": 20, "logit_bias": {499: -100}})
    driver.finish()
    assert set(driver.failures) == {"bad"} and driver.failures["bad"].status == 422
    assert "cannot compute this" in driver.failures["bad"].message
    assert all(driver.answers(name) == healthy.answers(name) for name in prompts)
    assert llm.engine.stats().step_failures == 1


def test_a_fault_of_the_device_is_not_the_requests(tiny_model: Path) -> None:
    llm = small_llm(tiny_model)

    def forward(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    around_forward(llm, forward)
    driver = Driver(llm)
    driver.add("any", [5, 6], {"max_new_tokens": 20})
    driver.finish()
    assert driver.failures["any"].status == 500


def test_scores_that_are_not_finite_fail_their_request_only(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = small_llm(tiny_model)

    def forward(plan: Plan, compute: Callable[[], StepLogits]) -> StepLogits:
        forwarded = compute()
        for row, sequence in enumerate(plan.sampled()):
            if sequence.request.id.startswith("bad"):
                forwarded.logits[row] = float("nan")
        return forwarded

    around_forward(llm, forward)
    driver = Driver(llm)
    driver.add("bad greedy", [5, 6], {"max_new_tokens": 5})
    driver.add("bad sampled", [5, 6], {"max_new_tokens": 5, "do_sample": True, "n": 3})
    driver.add("bad beams", [5, 6], {"max_new_tokens": 5, "num_beams": 3})
    driver.add("good", [5, 6], {"max_new_tokens": 5, "ignore_eos": True})
    driver.finish()
    assert set(driver.failures) == {"bad greedy", "bad sampled", "bad beams"}
    assert len(driver.answers("good")[0]) == 5
