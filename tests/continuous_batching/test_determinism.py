"""A seeded request yields the same tokens whatever else happens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm

PROMPT = [(13 * i) % 500 + 3 for i in range(21)]
KINDS: dict[str, dict[str, Any]] = {
    "one": {"temperature": 0.9, "top_p": 0.95},
    "filtered": {"temperature": 1.2, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95},
    "penalised": {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1},
    "unrepeated": {"no_repeat_ngram_size": 2, "temperature": 0.5, "top_k": 30},
    "several": {"n": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 2},
}


def options(kind: str) -> dict[str, Any]:
    return {"max_new_tokens": 40, "do_sample": True, "seed": 77, "ignore_eos": True, **KINDS[kind]}


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> dict[str, list[list[int]]]:
    """Answers of each kind of request by itself."""
    driver = Driver(small_llm(tiny_model))
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind))
        driver.finish()
    return {kind: driver.answers(kind) for kind in KINDS}


def test_answers_and_seeds_differ(tiny_model: Path, alone: dict[str, list[list[int]]]) -> None:
    assert len({tuple(answer) for answer in alone["several"]}) == 3
    assert alone["several"][0] != alone["one"][0], "the options differ"
    driver = Driver(small_llm(tiny_model))
    driver.add("other", PROMPT, options("one") | {"seed": 78})
    driver.finish()
    assert driver.answers("other") != alone["one"]


def test_in_a_batch(tiny_model: Path, alone: dict[str, list[list[int]]]) -> None:
    driver = Driver(small_llm(tiny_model, beams=64, num_blocks=2000))
    rng = random.Random(5)
    for i in range(12):
        driver.add(f"other {i}", rng.choices(range(3, 500), k=rng.randint(1, 50)), {"max_new_tokens": 30})
        driver.step()
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind))
    driver.finish()
    assert {kind: driver.answers(kind) for kind in KINDS} == alone


@pytest.mark.parametrize("policy", ["swap", "recompute"])
def test_swapped_or_recomputed(tiny_model: Path, alone: dict[str, list[list[int]]], policy: str) -> None:
    driver = Driver(
        small_llm(tiny_model, num_blocks=40, num_blocks_cpu=60, watermark=0.0, swap_policy=policy)
    )
    for i in range(4):
        driver.add(f"older {i}", PROMPT[i:], {"max_new_tokens": 60, "ignore_eos": True})
        driver.step()
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind))
    driver.finish()
    stats = driver.engine.stats()
    assert (stats.preempted_by_swap if policy == "swap" else stats.preempted_by_recompute) > 3
    assert {kind: driver.answers(kind) for kind in KINDS} == alone


@pytest.mark.parametrize("step", range(0, 40, 3))
def test_preempted_at_any_step(tiny_model: Path, alone: dict[str, list[list[int]]], step: int) -> None:
    driver = Driver(small_llm(tiny_model))
    driver.add("several", PROMPT, options("several"))
    for _ in range(step):
        driver.step()
    for request in list(driver.engine.scheduler.queues.running):
        driver.engine.scheduler.queues.recompute(request)
    driver.finish()
    assert driver.answers("several") == alone["several"]


@pytest.mark.parametrize("cut", [1, 7, 20, 39])
@pytest.mark.parametrize("kind", ["one", "filtered", "penalised", "unrepeated"])
def test_continued_from_a_prefix(
    tiny_model: Path, alone: dict[str, list[list[int]]], kind: str, cut: int
) -> None:
    """As when another server takes over a stream."""
    whole = alone[kind][0]
    driver = Driver(small_llm(tiny_model))
    driver.add("rest", PROMPT, options(kind), emitted=[whole[:cut]], stream=True)
    driver.finish()
    assert whole[:cut] + driver.answers("rest")[0] == whole


def test_several_answers_continued_from_their_prefixes(
    tiny_model: Path, alone: dict[str, list[list[int]]]
) -> None:
    whole = alone["several"]
    driver = Driver(small_llm(tiny_model))
    emitted = [whole[0][:5], whole[1], whole[2][:0]]
    driver.add(
        "rest", PROMPT, options("several"), emitted=emitted, finished_answers=frozenset({1}), stream=True
    )
    driver.finish()
    assert driver.tokens["rest"] == {0: whole[0][5:], 2: whole[2]}
