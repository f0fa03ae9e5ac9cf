"""Scheduling policies: in which order requests are served, and what their steps are made of."""

from __future__ import annotations

import random
from typing import Any

import pytest

from server.scheduling.limits import GroupSize
from server.scheduling.policies import POLICIES, PROMPT_TOKENS_PER_SECOND
from server.scheduling.request import Phase
from tests.scheduling.simulation import Simulation, names


def simulation_of(policy: str, **options: Any) -> Simulation:
    return Simulation(policy=POLICIES[policy], **options)


def test_short_prompts_overtake_long_ones() -> None:
    simulation = simulation_of("shortest_prompt_first", max_rows=1)
    simulation.add("running", prompt=4, new=2)
    simulation.step()
    simulation.now = 0.0  # the next three arrive together
    for name, length in (("long", 30), ("short", 5), ("middle", 12)):
        simulation.add(name, prompt=length, new=1)
        simulation.now = 0.0
    computed = [names(simulation.step())[1] for _ in range(4)]
    assert [name for step in computed for name in step] == ["short", "middle", "long"]


def test_a_long_prompt_is_not_overtaken_without_end() -> None:
    """Short prompts keep arriving; the long one is served when it has waited for its length."""
    simulation = simulation_of("shortest_prompt_first", max_rows=1, model_max_length=4096, chunk_tokens=4096)
    length = 25
    seconds = length / PROMPT_TOKENS_PER_SECOND
    long = simulation.add("long", prompt=length, new=1)
    simulation.now = 0.0
    simulation.add("first", prompt=5, new=1)
    for index in range(100):
        simulation.now = seconds * index / 10
        simulation.add(f"short-{index}", prompt=5, new=1)
        simulation.now = seconds * index / 10
        simulation.step()
        if long.phase is Phase.FINISHED:
            break
    assert 5 < index < 20


def test_prompts_interrupt_decodes_and_are_computed_whole() -> None:
    simulation = simulation_of("prefill_first", max_tokens=32, chunk_tokens=8)
    simulation.add("a", prompt=20)
    assert names(simulation.step()) == ([], ["a"])
    assert names(simulation.step()) == (["a"], [])
    simulation.add("b", prompt=20)
    simulation.add("c", prompt=20)
    plan = simulation.step()
    assert names(plan) == ([], ["b"])
    assert [(chunk.start, chunk.length) for chunk in plan.chunks] == [(0, 20)]
    assert names(simulation.step()) == ([], ["c"])
    assert names(simulation.step()) == (["a", "b", "c"], [])


def test_a_prompt_beyond_a_step_is_computed_in_chunks_even_so() -> None:
    simulation = simulation_of("prefill_first", max_tokens=32)
    simulation.add("a", prompt=40)
    assert names(simulation.step()) == ([], ["a"])
    assert names(simulation.step()) == ([], ["a"])
    assert names(simulation.step()) == (["a"], [])


def test_requests_enter_together_and_no_prompt_disturbs_their_decodes() -> None:
    simulation = simulation_of("decode_first", max_tokens=32, max_rows=2)
    for name in "abc":
        simulation.add(name, prompt=20, new=3)
    steps = [names(simulation.step()) for _ in range(7)]
    assert steps == [
        ([], ["a"]),
        ([], ["b"]),
        (["a", "b"], []),
        (["a", "b"], []),
        ([], ["c"]),
        (["c"], []),
        (["c"], []),
    ]


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("swap", ["swap", "recompute"])
@pytest.mark.parametrize("more", [(), (GroupSize(9, 6, 8),), (GroupSize(6, 0, 1), GroupSize(9, 6, 6))])
def test_every_request_ends_under_pressure(
    policy: str, seed: int, swap: str, more: tuple[GroupSize, ...]
) -> None:
    """Few blocks, requests of all sizes, some with several answers: no request starves, no block leaks."""
    rng = random.Random(seed)
    simulation = simulation_of(
        policy, num_blocks=14, host=9, swap=swap, max_rows=5, chunk_tokens=16, more=more
    )
    requests = []
    for index in range(60):
        answers = rng.choice((1, 1, 1, 2, 3))
        new = rng.randint(1, 12)
        prompt = rng.randint(1, 14 * 4 // (answers + 1) - new)
        priority = rng.randint(-2, 2)
        requests.append(
            simulation.add(
                str(index),
                prompt=prompt,
                new=new,
                priority=priority,
                params={"num_choices": answers},
            )
        )
        for _ in range(rng.randint(0, 3)):
            simulation.step()
    for _ in range(3000):
        if all(request.phase is Phase.FINISHED for request in requests):
            break
        simulation.step()
    assert {request.phase for request in requests} == {Phase.FINISHED}
    counters = simulation.scheduler.queues.preemptions
    assert counters.swapped + counters.recomputed > 0
    assert {group.device.num_used for group in simulation.scheduler.cache.groups} == {0}
