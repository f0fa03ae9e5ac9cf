"""A scheduler whose plans are run with no model."""

from __future__ import annotations

from typing import Any

from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import GroupSize, Limits
from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.policies import POLICIES, SchedulingPolicy
from server.scheduling.preemption import PreemptionCost
from server.scheduling.request import Request
from server.scheduling.scheduler import Scheduler

BLOCK = 4


class Simulation:
    """Runs plans without computing anything: every sampled sequence gets the token 7."""

    def __init__(
        self,
        num_blocks: int = 64,
        host: int = 0,
        swap: Any = "auto",
        more: tuple[GroupSize, ...] = (),
        policy: SchedulingPolicy = POLICIES["first_come"],
        **limits: Any,
    ) -> None:
        sizes: dict[str, Any] = {
            "max_tokens": 32,
            "max_rows": 8,
            "max_waiting": 100,
            "chunk_tokens": 32,
            "model_max_length": 256,
            "groups": (GroupSize(num_blocks, host), *more),
            "block_size": BLOCK,
            "watermark": 0.0,
        }
        cache = CacheManager(sizes["groups"], BLOCK)
        self.scheduler = Scheduler(Limits(**(sizes | limits)), cache, PreemptionCost(swap), policy)
        self.now = 0.0

    def add(self, name: str, prompt: int, new: int = 100, **options: Any) -> Request:
        params = SamplingParams(max_new_tokens=new, **options.pop("params", {}))
        tokens = [sum(map(ord, name)) * 31 + i for i in range(prompt)]
        request = Request(name, tokens, params, self.now, **options)
        self.now += 1.0
        self.scheduler.queues.add(request)
        return request

    def step(self) -> Plan:
        plan = self.scheduler.schedule(self.now)
        self.scheduler.queues.check()
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
        for sequence in plan.sampled():
            sequence.history.append(7)
            if sequence.num_generated >= sequence.request.params.max_new_tokens:
                self.scheduler.queues.finish(sequence)
        self.scheduler.queues.check()
        return plan


def names(plan: Plan) -> tuple[list[str], list[str]]:
    """(requests that decode, requests whose prompts are computed)."""
    return [s.request.id for s in plan.decodes], [c.sequence.request.id for c in plan.chunks]
