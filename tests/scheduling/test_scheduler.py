"""The scheduler's plans, with no model: who runs, who waits, who has to go."""

from __future__ import annotations

from typing import Any

import pytest

from server.scheduling.limits import GroupSize, Limits
from server.scheduling.preemption import PreemptionCost
from server.scheduling.request import Phase
from tests.scheduling.simulation import Simulation, names


def test_prompt_then_decodes() -> None:
    simulation = Simulation()
    request = simulation.add("a", prompt=5, new=3)
    assert names(simulation.step()) == ([], ["a"])
    assert names(simulation.step()) == (["a"], [])
    assert names(simulation.step()) == (["a"], [])
    assert request.phase is Phase.FINISHED
    assert simulation.step().is_empty


def test_prompts_and_decodes_share_a_step() -> None:
    simulation = Simulation()
    simulation.add("a", prompt=5)
    simulation.step()
    simulation.add("b", prompt=6)
    assert names(simulation.step()) == (["a"], ["b"])


def test_long_prompts_come_in_chunks_within_the_token_budget() -> None:
    simulation = Simulation(max_tokens=16, chunk_tokens=16)
    simulation.add("a", prompt=4)
    simulation.step()
    simulation.add("b", prompt=40)
    lengths = []
    for _ in range(3):
        plan = simulation.step()
        assert plan.num_tokens <= 16 and names(plan)[0] == ["a"]
        lengths.append(plan.chunks[0].length)
    assert lengths == [15, 15, 10]
    assert simulation.scheduler.queues.running[-1].sequences[0].num_generated == 1


def test_the_beam_budget_bounds_the_rows() -> None:
    simulation = Simulation(max_rows=8)
    simulation.add("wide", prompt=4, params={"num_beams": 6})
    simulation.add("b", prompt=4)
    simulation.add("c", prompt=4)
    simulation.add("d", prompt=4)
    assert names(simulation.step())[1] == ["wide", "b", "c"]
    assert simulation.scheduler.queues.slots.num_free == 0


def test_a_prompt_splits_into_answers_that_share_its_blocks() -> None:
    simulation = Simulation()
    request = simulation.add("a", prompt=9, params={"num_choices": 3})
    assert not simulation.step().sampled(), "the last prompt token is decoded by each answer itself"
    plan = simulation.step()
    assert len(plan.decodes) == 3
    assert [s.index for s in request.sequences] == [0, 1, 2]
    assert len({s.tables[0].blocks[0] for s in request.sequences}) == 1


def test_first_come_first_served() -> None:
    simulation = Simulation(max_rows=1)
    for name in "abc":
        simulation.add(name, prompt=2, new=1)
    assert [names(simulation.step())[1] for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_priority_overtakes_but_starves_no_request() -> None:
    simulation = Simulation(max_rows=1)
    simulation.add("patient", prompt=2, new=1)
    served = []
    for index in range(40):
        simulation.add(f"urgent-{index}", prompt=2, new=1, priority=2)
        served += names(simulation.step())[1]
    assert served[0] == "urgent-0"
    assert "patient" in served[:25], "a head start is finite"


def test_a_request_that_does_not_fit_is_not_overtaken() -> None:
    simulation = Simulation(num_blocks=10)
    simulation.add("a", prompt=12, new=20)
    simulation.step()
    simulation.add("big", prompt=30, new=4)
    simulation.add("small", prompt=2, new=4)
    for _ in range(5):
        assert names(simulation.step())[1] == []


def test_the_watermark_is_kept_free_at_admission() -> None:
    simulation = Simulation(num_blocks=20, watermark=0.2)
    simulation.add("a", prompt=40)
    simulation.add("b", prompt=24)  # 10 + 6 blocks, leaves 4 = the watermark
    simulation.add("c", prompt=4)
    simulation.step(), simulation.step()
    running = [request.id for request in simulation.scheduler.queues.running]
    assert running == ["a", "b"]


def test_the_newest_leave_first_and_return_in_order() -> None:
    simulation = Simulation(num_blocks=9, host=20, swap="swap")
    for name in "abc":
        simulation.add(name, prompt=8, new=16)
    order: list[str] = []
    left: list[str] = []
    for _ in range(60):
        before = {r.id for r in simulation.scheduler.queues.running}
        plan = simulation.step()
        gone = before - {r.id for r in simulation.scheduler.queues.running}
        left += [r.id for r in simulation.scheduler.queues.swapped if r.id in gone]
        order += [r.id for r in plan.joined]
    assert left[0] == "c", "the newest pays"
    assert order[:3] == ["a", "b", "c"]
    assert simulation.scheduler.queues.preemptions.swapped > 0
    assert not simulation.scheduler.queues.requests(), "all have finished"


def test_no_step_touches_what_is_swapped_in_beside_it() -> None:
    simulation = Simulation(num_blocks=9, host=20, swap="swap")
    for name in "abc":
        simulation.add(name, prompt=8, new=16)
    arrivals = 0
    while simulation.scheduler.queues.requests():
        plan = simulation.step()
        arriving = {(group, block) for group, _, block in plan.swap_in}
        arrivals += len(arriving)
        read = {block for sequence in plan.sequences() for block in sequence.held()}
        assert not arriving & read
    assert arrivals > 0


def test_a_full_host_pool_means_recomputation() -> None:
    simulation = Simulation(num_blocks=9, host=1, swap="swap")
    for name in "abc":
        simulation.add(name, prompt=8, new=16)
    for _ in range(80):
        simulation.step()
    assert simulation.scheduler.queues.preemptions.swapped == 0
    assert simulation.scheduler.queues.preemptions.recomputed > 0
    assert not simulation.scheduler.queues.requests()


def test_auto_policy_takes_the_cheaper_way() -> None:
    cost = PreemptionCost("auto")
    assert cost.prefers_swap(size=10, tokens=40), "unmeasured: swap"
    cost.observe_copy(size=10, seconds=1.0)
    cost.observe_prefill(tokens=100, seconds=1.0)
    assert not cost.prefers_swap(size=10, tokens=40), "2 s of copies against 0.4 s of prompt"
    assert cost.prefers_swap(size=10, tokens=400)
    assert PreemptionCost("swap").prefers_swap(size=10**6, tokens=1)
    assert not PreemptionCost("recompute").prefers_swap(size=1, tokens=10**6)


def test_queue_timeout_hits_only_requests_that_never_started() -> None:
    simulation = Simulation(max_rows=1)
    simulation.add("a", prompt=2, new=50, deadline=3.0)
    simulation.add("b", prompt=2, deadline=10.0)
    for _ in range(5):
        assert not simulation.step().expired
    simulation.now = 10.0
    assert [r.id for r in simulation.step().expired] == ["b"]
    assert [r.id for r in simulation.scheduler.queues.running] == ["a"]


@pytest.mark.parametrize("steps", range(8))
def test_removal_in_any_state_frees_everything(steps: int) -> None:
    simulation = Simulation(num_blocks=12, host=6)
    requests = [
        simulation.add("a", prompt=9),
        simulation.add("b", prompt=9, params={"num_beams": 3}),
        simulation.add("c", prompt=9, params={"num_choices": 2}),
    ]
    for _ in range(steps):
        simulation.step()
    for request in requests:
        simulation.scheduler.queues.remove(request)
        simulation.scheduler.queues.check()
        assert request.phase is Phase.FINISHED
    cache = simulation.scheduler.cache
    assert all(group.device.num_used == group.host.num_used == 0 for group in cache.groups)
    assert simulation.scheduler.queues.slots.num_free == 8


def limits(**changes: Any) -> Limits:
    sizes = {"max_tokens": 64, "max_rows": 8, "max_waiting": 9, "chunk_tokens": 64, "model_max_length": 100}
    return Limits(**(sizes | {"groups": (GroupSize(30),), "block_size": 4, "watermark": 0.01} | changes))


@pytest.mark.parametrize(
    ("prompt", "rows", "new", "parameter", "numbers"),
    [
        (100, 1, 1, "prompt_tokens", ["100"]),
        (60, 1, 41, "new_tokens", ["60", "41", "101", "100"]),
        (10, 9, 1, "rows", ["9", "8"]),
        (41, 8, 20, "new_tokens", ["30", "41"]),
    ],
)
def test_what_can_never_fit_is_refused_by_the_numbers(
    prompt: int, rows: int, new: int, parameter: str, numbers: list[str]
) -> None:
    objection = limits().objection(prompt, rows, new)
    assert objection is not None and objection[0] == parameter
    assert all(number in objection[1] for number in numbers)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("prompt", [1, 3, 4, 5, 8, 9, 40])
def test_the_longest_answer_that_is_allowed_runs_alone(prompt: int, rows: int) -> None:
    """`max_new_tokens` is exact: one more is refused, and that number really fits."""
    simulation = Simulation(num_blocks=30, model_max_length=100, watermark=0.01)
    most = simulation.scheduler.limits.max_new_tokens(prompt, rows)
    assert simulation.scheduler.limits.objection(prompt, rows, most) is None
    assert simulation.scheduler.limits.objection(prompt, rows, most + 1) is not None
    params = {"num_choices": rows}
    simulation.add("a", prompt=prompt, new=most, params=params)
    for _ in range(most + 5):
        simulation.step()
    assert not simulation.scheduler.queues.requests()
    assert simulation.scheduler.queues.preemptions.recomputed == 0


# -- windows -------------------------------------------------------------------------------------


def test_prompts_take_blocks_of_a_window_chunk_by_chunk() -> None:
    """A prompt of 25 blocks runs in a pool of six; behind it only the window's blocks stay."""
    simulation = Simulation(num_blocks=64, more=(GroupSize(6, 0, 8),), chunk_tokens=20)
    request = simulation.add("a", prompt=98, new=3)
    lengths = []
    while not request.sequences[0].num_generated:
        lengths += [chunk.length for chunk in simulation.step().chunks]
    assert lengths == [20, 16, 16, 16, 16, 14]
    simulation.step()
    assert len([*request.sequences[0].tables[1].held()]) == 3


def test_a_later_prompt_leaves_for_an_earlier_one_that_finds_no_block_of_a_window() -> None:
    simulation = Simulation(num_blocks=64, more=(GroupSize(3, 0, 8),), max_rows=2)
    cache, queues = simulation.scheduler.cache, simulation.scheduler.queues
    requests = [simulation.add("first", prompt=60, new=2), simulation.add("second", prompt=60, new=2)]
    for request in requests:
        queues.enter(request)
        cache.admit(request)
    assert cache.extend(requests[1].sequences[0], 60) == 12, "it has all blocks of the window's pool"
    assert names(simulation.step())[1] == ["first"]
    assert requests[1].phase is Phase.WAITING and queues.preemptions.recomputed == 1
    for _ in range(40):
        simulation.step()
    assert {request.phase for request in requests} == {Phase.FINISHED}
    assert queues.preemptions.recomputed == 1


def test_no_request_enters_while_a_prompt_waits_for_blocks() -> None:
    """What decodes holds the window's pool: the prompt waits for its end, and no request overtakes it."""
    simulation = Simulation(num_blocks=64, more=(GroupSize(6, 0, 8),), chunk_tokens=8)
    simulation.add("decodes", prompt=6, new=12)
    simulation.step()
    long = simulation.add("long", prompt=40, new=2)
    simulation.add("late", prompt=2, new=2)
    seen: list[str] = []
    for _ in range(40):
        plan = simulation.step()
        seen += [name for name in names(plan)[1] if name not in seen]
    assert seen == ["long", "late"] and long.phase is Phase.FINISHED
    assert simulation.scheduler.queues.preemptions.recomputed == 0


def test_a_window_bounds_what_a_request_needs() -> None:
    sizes = limits(groups=(GroupSize(9, 0, 8),), model_max_length=1000)
    assert sizes.objection(500, 3, 500) is None
    assert sizes.objection(500, 4, 500) is not None
    assert sizes.max_new_tokens(500, 3) == 500
    for rows in (4, 5):  # short enough to be held whole
        most = sizes.max_new_tokens(3, rows)
        assert sizes.objection(3, rows, most) is None and sizes.objection(3, rows, most + 1) is not None


def test_cached_tokens_are_those_of_the_first_admission() -> None:
    """A request that left and is computed again finds its own blocks: of these nobody is told."""
    simulation = Simulation(num_blocks=12, swap="recompute")
    simulation.add("a", prompt=10, new=1)
    simulation.step()
    old = simulation.add("o", prompt=13)
    same = simulation.add("a", prompt=10)
    simulation.step()
    assert (old.cached_tokens, same.cached_tokens) == (0, 2 * 4)
    while same.phase is not Phase.WAITING:
        simulation.step()
    simulation.scheduler.queues.remove(old)
    simulation.step()
    assert same.phase is Phase.RUNNING and same.sequences[0].num_generated > 0
    assert same.cached_tokens == 2 * 4
