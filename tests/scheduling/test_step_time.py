"""How long steps take, as far as it is learned, and chunks that keep a promised time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from server.scheduling.policies import POLICIES
from server.scheduling.step_time import LEAST_CHUNK, StepTime
from tests.scheduling.simulation import Simulation


def plan(decodes: int, prompt: int = 0) -> Any:
    return SimpleNamespace(num_tokens=decodes + prompt, chunks=[prompt] if prompt else [])


def seconds(decodes: int, prompt: int) -> float:
    """A device that takes 4 ms for the weights and 25 µs for a token of a prompt."""
    return 0.004 + 25e-6 * prompt + 2e-6 * decodes


def test_nothing_is_expected_of_what_was_not_seen() -> None:
    times = StepTime()
    for _ in range(3):
        assert times.expected(plan(8)) is None
        times.observe(plan(8), 0.005)
    assert times.expected(plan(8)) == pytest.approx(0.005)
    assert times.expected(plan(4, 4)) is None, "steps with prompts are another kind"
    assert times.expected(plan(0)) is None


def test_chunks_grow_to_what_fits_and_never_far_beyond() -> None:
    times = StepTime(target=0.02)
    sizes = []
    for _ in range(200):
        size = times.chunk_tokens(16, 8192, 8192)
        sizes.append(size)
        times.observe(plan(16, size), seconds(16, size))
    assert sizes[0] == LEAST_CHUNK
    assert max(seconds(16, size) for size in sizes) < 1.25 * 0.02
    fitting = (0.02 - seconds(16, 0)) / 25e-6
    assert 0.6 * fitting < sizes[-1] < 1.25 * fitting


def test_chunks_shrink_where_steps_take_longer() -> None:
    """As contexts grow, or where the device was measured before something else used it."""
    times = StepTime(target=0.02)
    slow = 1.0
    for number in range(400):
        slow = 1.0 if number < 200 else 3.0
        size = times.chunk_tokens(16, 8192, 8192)
        times.observe(plan(16, size), slow * seconds(16, size))
    assert slow * seconds(16, times.chunk_tokens(16, 8192, 8192)) < 1.3 * 0.02


def test_prompts_go_on_where_even_decodes_take_too_long() -> None:
    times = StepTime(target=0.001)
    for _ in range(20):
        size = times.chunk_tokens(16, 8192, 8192)
        assert size == LEAST_CHUNK
        times.observe(plan(16, size), seconds(16, size))


def test_without_decodes_or_without_a_target_there_is_no_limit() -> None:
    assert StepTime(target=0.001).chunk_tokens(0, 8192, 8192) == 8192
    assert StepTime().chunk_tokens(16, 8192, 8192) == 8192
    assert StepTime(target=0.001).chunk_tokens(16, 64, 8192) == 64


def test_the_scheduler_cuts_prompts_beside_decodes_alone() -> None:
    simulation = Simulation(
        num_blocks=1024, max_tokens=1024, chunk_tokens=1024, model_max_length=2048, max_rows=4
    )
    simulation.scheduler.step_time = StepTime(target=0.001)
    simulation.add("first", prompt=600, new=20)
    assert [chunk.length for chunk in simulation.step().chunks] == [600]
    simulation.add("second", prompt=600, new=20)
    lengths = [chunk.length for _ in range(5) for chunk in simulation.step().chunks]
    assert lengths == [128, 128, 128, 128, 88]


def test_which_policies_mix() -> None:
    assert {name for name, policy in POLICIES.items() if policy.mixes} == {
        "first_come",
        "shortest_prompt_first",
    }


def test_few_prompts_are_computed_in_steps_that_are_replayed() -> None:
    times = StepTime(replayed=2048)
    assert times.chunk_tokens(48, 8144, waiting=3_000) == 2000
    assert times.chunk_tokens(48, 1000, waiting=3_000) == 1000
    assert times.chunk_tokens(48, 8144, waiting=8_001) == 8144, "many take less time in large steps"
    assert times.chunk_tokens(0, 8192, waiting=3_000) == 8192, "no stream waits for it"
    assert times.chunk_tokens(2000, 6192, waiting=3_000) == 6192, "next to no prompt would fit"
    assert StepTime().chunk_tokens(48, 8144, waiting=3_000) == 8144
