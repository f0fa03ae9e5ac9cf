"""What the engine says of itself; apart from it, for the HTTP side knows no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineStats:
    """A snapshot of load, cache and counters, for metrics and ``/status``."""

    running: int = 0
    waiting: int = 0
    swapped: int = 0
    running_rows: int = 0
    pending_tokens: int = 0
    cache_usage: float = 0.0
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
