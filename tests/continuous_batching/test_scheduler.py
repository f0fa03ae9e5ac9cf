"""The scheduler's plans, with no model: who runs, who waits, who has to go."""

from __future__ import annotations

from typing import Any

import pytest

from server.continuous_batching.cache.manager import CacheManager
from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.scheduler.cost import PreemptionCost
from server.continuous_batching.scheduler.limits import Limits
from server.continuous_batching.scheduler.plan import Plan
from server.continuous_batching.scheduler.request import Phase, Request
from server.continuous_batching.scheduler.scheduler import Scheduler

BLOCK = 4


class Simulation:
    """Runs plans without computing anything: every sampled sequence gets the token 7."""

    def __init__(self, num_blocks: int = 64, host: int = 0, policy: Any = "auto", **limits: Any) -> None:
        sizes = {
            "max_tokens": 32,
            "max_rows": 8,
            "max_waiting": 100,
            "chunk_tokens": 32,
            "model_max_length": 256,
            "num_blocks": num_blocks,
            "block_size": BLOCK,
            "watermark": 0.0,
        }
        cache = CacheManager(num_blocks, host, BLOCK)
        self.scheduler = Scheduler(Limits(**(sizes | limits)), cache, PreemptionCost(policy))
        self.now = 0.0

    def add(self, name: str, prompt: int, new: int = 100, **options: Any) -> Request:
        params = SamplingParams(max_new_tokens=new, **options.pop("params", {}))
        tokens = [sum(map(ord, name)) * 31 + i for i in range(prompt)]
        request = Request(name, tokens, params, self.now, **options)
        self.now += 1.0
        self.scheduler.add(request)
        return request

    def step(self) -> Plan:
        plan = self.scheduler.schedule(self.now)
        self.scheduler.check()
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
        for sequence in plan.sampled():
            sequence.history.append(7)
            if sequence.num_generated >= sequence.request.params.max_new_tokens:
                self.scheduler.finish(sequence)
        self.scheduler.check()
        return plan


def names(plan: Plan) -> tuple[list[str], list[str]]:
    """(requests that decode, requests whose prompts are computed)."""
    return [s.request.id for s in plan.decodes], [c.sequence.request.id for c in plan.chunks]


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
    assert simulation.scheduler.running[-1].sequences[0].num_generated == 1


def test_the_beam_budget_bounds_the_rows() -> None:
    simulation = Simulation(max_rows=8)
    simulation.add("wide", prompt=4, params={"num_beams": 6})
    simulation.add("b", prompt=4)
    simulation.add("c", prompt=4)
    simulation.add("d", prompt=4)
    assert names(simulation.step())[1] == ["wide", "b", "c"]
    assert simulation.scheduler.num_free_rows == 0


def test_a_prompt_splits_into_answers_that_share_its_blocks() -> None:
    simulation = Simulation()
    request = simulation.add("a", prompt=9, params={"num_choices": 3, "do_sample": True})
    assert not simulation.step().sampled(), "the last prompt token is decoded by each answer itself"
    plan = simulation.step()
    assert len(plan.decodes) == 3
    assert [s.index for s in request.sequences] == [0, 1, 2]
    assert len({s.blocks[0] for s in request.sequences}) == 1


def test_first_come_first_served() -> None:
    simulation = Simulation(max_rows=1)
    for name in "abc":
        simulation.add(name, prompt=2, new=1)
    assert [names(simulation.step())[1] for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_priority_overtakes_but_starves_nobody() -> None:
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
    running = [request.id for request in simulation.scheduler.running]
    assert running == ["a", "b"]


def test_the_newest_leave_first_and_return_in_order() -> None:
    simulation = Simulation(num_blocks=9, host=20, policy="swap")
    for name in "abc":
        simulation.add(name, prompt=8, new=16)
    order: list[str] = []
    left: list[str] = []
    for _ in range(60):
        before = {r.id for r in simulation.scheduler.running}
        plan = simulation.step()
        gone = before - {r.id for r in simulation.scheduler.running}
        left += [r.id for r in simulation.scheduler.swapped if r.id in gone]
        order += [r.id for r in plan.joined]
    assert left[0] == "c", "the newest pays"
    assert order[:3] == ["a", "b", "c"]
    assert simulation.scheduler.preemptions.swapped > 0
    assert not simulation.scheduler.requests(), "all have finished"


def test_no_step_touches_what_is_swapped_in_beside_it() -> None:
    simulation = Simulation(num_blocks=9, host=20, policy="swap")
    for name in "abc":
        simulation.add(name, prompt=8, new=16)
    arrivals = 0
    while simulation.scheduler.requests():
        plan = simulation.step()
        arriving = {block for _, block in plan.swap_in}
        arrivals += len(arriving)
        read = {block for sequence in plan.sequences() for block in sequence.blocks}
        assert not arriving & read
    assert arrivals > 0


def test_a_full_host_pool_means_recomputation() -> None:
    simulation = Simulation(num_blocks=9, host=1, policy="swap")
    for name in "abc":
        simulation.add(name, prompt=8, new=16)
    for _ in range(80):
        simulation.step()
    assert simulation.scheduler.preemptions.swapped == 0
    assert simulation.scheduler.preemptions.recomputed > 0
    assert not simulation.scheduler.requests()


def test_auto_policy_takes_the_cheaper_way() -> None:
    cost = PreemptionCost("auto")
    assert cost.prefers_swap(blocks=10, tokens=40), "unmeasured: swap"
    cost.observe_copy(blocks=10, seconds=1.0)
    cost.observe_prefill(tokens=100, seconds=1.0)
    assert not cost.prefers_swap(blocks=10, tokens=40), "2 s of copies against 0.4 s of prompt"
    assert cost.prefers_swap(blocks=10, tokens=400)
    assert PreemptionCost("swap").prefers_swap(blocks=10**6, tokens=1)
    assert not PreemptionCost("recompute").prefers_swap(blocks=1, tokens=10**6)


def test_queue_timeout_hits_only_requests_that_never_started() -> None:
    simulation = Simulation(max_rows=1)
    simulation.add("a", prompt=2, new=50, deadline=3.0)
    simulation.add("b", prompt=2, deadline=10.0)
    for _ in range(5):
        assert not simulation.step().expired
    simulation.now = 10.0
    assert [r.id for r in simulation.step().expired] == ["b"]
    assert [r.id for r in simulation.scheduler.running] == ["a"]


@pytest.mark.parametrize("steps", range(8))
def test_removal_in_any_state_frees_everything(steps: int) -> None:
    simulation = Simulation(num_blocks=12, host=6)
    requests = [
        simulation.add("a", prompt=9),
        simulation.add("b", prompt=9, params={"num_beams": 3}),
        simulation.add("c", prompt=9, params={"num_choices": 2, "do_sample": True}),
    ]
    for _ in range(steps):
        simulation.step()
    for request in requests:
        simulation.scheduler.remove(request)
        simulation.scheduler.check()
        assert request.phase is Phase.FINISHED
    cache = simulation.scheduler.cache
    assert cache.device.num_used == cache.host.num_used == 0
    assert simulation.scheduler.num_free_rows == 8


def limits(**changes: Any) -> Limits:
    sizes = {"max_tokens": 64, "max_rows": 8, "max_waiting": 9, "chunk_tokens": 64, "model_max_length": 100}
    return Limits(**(sizes | {"num_blocks": 30, "block_size": 4, "watermark": 0.01} | changes))


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
    """`max_new_tokens` is exact: one more is refused, and so many really fit."""
    simulation = Simulation(num_blocks=30, model_max_length=100, watermark=0.01)
    most = simulation.scheduler.limits.max_new_tokens(prompt, rows)
    assert simulation.scheduler.limits.objection(prompt, rows, most) is None
    assert simulation.scheduler.limits.objection(prompt, rows, most + 1) is not None
    params = {"num_choices": rows, "do_sample": True}
    simulation.add("a", prompt=prompt, new=most, params=params)
    for _ in range(most + 5):
        simulation.step()
    assert not simulation.scheduler.requests()
    assert simulation.scheduler.preemptions.recomputed == 0
