"""A step reports on so many tokens of prompts at most, on each once, and keeps nobody else from running."""

from __future__ import annotations

from typing import Any

import pytest

from server.scheduling.plan import Plan
from server.scheduling.policies import POLICIES
from server.scheduling.request import Request
from tests.scheduling.simulation import BLOCK, Simulation

SCORED: dict[str, Any] = {"params": {"prompt_logprobs": 1}}


def run(simulation: Simulation, requests: list[Request], steps: int = 60) -> dict[str, list[int]]:
    """The places that were reported on, by request; taken back as the collector does."""
    told: dict[str, list[int]] = {request.id: [] for request in requests}
    for _ in range(steps):
        plan: Plan = simulation.step()
        assert plan.num_scored <= simulation.scheduler.limits.scored_tokens
        for chunk in plan.chunks:
            first, end = chunk.scored
            if first < end:
                told[chunk.sequence.request.id] += range(first, end)
                chunk.sequence.request.prompt_reported = end
    return told


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("scored_tokens", [1, 5, 1000])
def test_each_token_once(policy: str, scored_tokens: int) -> None:
    simulation = Simulation(scored_tokens=scored_tokens, policy=POLICIES[policy])
    requests = [
        simulation.add(name, prompt, new=3, **SCORED) for name, prompt in (("a", 19), ("b", 1), ("c", 24))
    ]
    requests.append(simulation.add("beams", 6, new=3, params={"prompt_logprobs": 0, "num_beams": 3}))
    requests.append(simulation.add("plain", 30, new=3))
    told = run(simulation, requests)
    lengths = {request.id: request.prompt_length for request in requests}
    assert {name: len(places) for name, places in told.items()} == {
        name: 0 if name == "plain" else length - 1 for name, length in lengths.items()
    }
    assert all(places == list(range(len(places))) for places in told.values())


def test_what_was_computed_before_is_computed_again_up_to_what_was_reported() -> None:
    simulation = Simulation(scored_tokens=6)
    run(simulation, [simulation.add("a", 40, new=2)])
    request = simulation.add("a", 40, new=2, **SCORED)
    run(simulation, [request], steps=3)
    assert (request.prompt_reported, simulation.scheduler.cache.counters.prefix_hits) == (18, 0)
    simulation.scheduler.queues.drop(request)
    plan = simulation.step()
    (chunk,) = plan.chunks
    assert chunk.start == 18 // BLOCK * BLOCK and chunk.scored == (18, 24)


def test_a_prompt_that_is_not_scored_does_not_wait_for_those_that_are() -> None:
    simulation = Simulation(scored_tokens=2)
    simulation.add("running", 30, new=3, **SCORED)
    simulation.add("plain", 20, new=3)
    plan = simulation.step()
    assert {chunk.sequence.request.id: chunk.length for chunk in plan.chunks} == {"running": 2, "plain": 20}
