"""This server's scheduler in virtual time: every decision is the real one, only arithmetic is left out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.loadgen.endpoint import Record
from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import GroupSize, Limits
from server.scheduling.params import SamplingParams
from server.scheduling.plan import Plan
from server.scheduling.policies import SchedulingPolicy
from server.scheduling.preemption import PreemptionCost
from server.scheduling.request import Phase, Request
from server.scheduling.scheduler import Scheduler


@dataclass(frozen=True)
class Machine:
    base: float = 0.006
    per_row: float = 0.0001
    per_prompt: float = 0.00005
    rows: int = 32
    blocks: int = 4096
    chunk: int = 512

    def seconds(self, plan: Plan) -> float:
        """What a step takes: something for its own sake, for each decode and for each prompt token."""
        return self.base + self.per_row * len(plan.decodes) + self.per_prompt * plan.num_prompt_tokens


def simulate(
    policy: SchedulingPolicy,
    work: Sequence[tuple[float, int, int]],
    machine: Machine = Machine(),
    host_blocks: int = 0,
) -> tuple[list[Record], Scheduler]:
    """A record for each of `work`: (seconds at which it arrives, prompt tokens, answer tokens)."""
    size = GroupSize(machine.blocks, host_blocks)
    limits = Limits(8192, machine.rows, len(work), machine.chunk, 10**6, (size,), 16, 0.01)
    cache = CacheManager([size], 16, prefix_cache=False)
    scheduler = Scheduler(limits, cache, PreemptionCost(), policy)
    coming = sorted(work)
    records = {str(i): Record(i, at, sent=at) for i, (at, _, _) in enumerate(coming)}
    now, added = 0.0, 0
    for _ in itertools.count():
        while added < len(coming) and coming[added][0] <= now:
            at, prompt, answer = coming[added]
            scheduler.queues.add(Request(str(added), [1] * prompt, SamplingParams(answer), at))
            added += 1
        if not scheduler.queues.requests():
            if added == len(coming):
                return list(records.values()), scheduler
            now = coming[added][0]
            continue
        plan = scheduler.schedule(now)
        now += machine.seconds(plan)
        for sequence in plan.decodes:
            sequence.num_computed += 1
        for chunk in plan.chunks:
            chunk.sequence.num_computed = chunk.end
        for sequence in plan.sampled():
            request, record = sequence.request, records[sequence.request.id]
            sequence.history.append(1)
            record.new_tokens = sequence.num_generated
            if record.first is None:
                record.first = now
            else:
                record.pieces.append(now)
            if sequence.num_generated == request.params.max_new_tokens:
                record.end = now
                scheduler.queues.finish(sequence)
                assert request.phase is Phase.FINISHED
    raise AssertionError("the loop above does not end by itself")
