"""The engine's statistics; a module of its own, for the HTTP side does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.scheduling.scheduler import Scheduler


@dataclass(slots=True)
class EngineStats:
    """A snapshot of load, cache and counters, for metrics and ``/status``."""

    running: int = 0
    waiting: int = 0
    swapped: int = 0
    running_rows: int = 0
    pending_tokens: int = 0
    cache_usage: float = 0.0
    """Of the fullest group of layers."""
    cache_usage_by_group: dict[str, float] = field(default_factory=dict)
    cached_blocks: int = 0
    host_cache_usage: float = 0.0
    steps: int = 0
    generated_tokens: int = 0
    computed_prompt_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preempted_by_swap: int = 0
    preempted_by_recompute: int = 0
    swapped_out_blocks: int = 0
    swapped_in_blocks: int = 0
    copies_on_write: int = 0
    step_failures: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


def stats_of(scheduler: Scheduler) -> EngineStats:
    """The statistics of scheduler and cache."""
    queues, cache, speculator = scheduler.queues, scheduler.cache, scheduler.speculator
    usage = {group.size.name: group.device.usage for group in cache.groups}
    return EngineStats(
        running=len(queues.running),
        waiting=len(queues.waiting),
        swapped=len(queues.swapped),
        running_rows=scheduler.limits.max_rows - queues.slots.num_free,
        cache_usage=max(usage.values()),
        cache_usage_by_group=usage,
        cached_blocks=sum(group.device.num_cached for group in cache.groups),
        host_cache_usage=max(group.host.usage for group in cache.groups),
        prefix_queries=cache.counters.prefix_queries,
        prefix_hits=cache.counters.prefix_hits,
        preempted_by_swap=queues.preemptions.swapped,
        preempted_by_recompute=queues.preemptions.recomputed,
        swapped_out_blocks=cache.counters.swapped_out_blocks,
        swapped_in_blocks=cache.counters.swapped_in_blocks,
        copies_on_write=cache.counters.copies_on_write,
        drafted_tokens=speculator.drafted_tokens,
        accepted_tokens=speculator.accepted_tokens,
    )
