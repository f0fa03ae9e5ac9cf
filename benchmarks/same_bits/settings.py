"""What may become of an answer: the settings that are compared with answers that are alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.same_bits.answers import Answerer, load
from server.continuous_batching import LLM
from server.scheduling.preemption import SwapPolicy

BATCHES = (7, 33, 64)
CHUNKS = (1, 5, 16, 100, 2048)
TOGETHER = 64
"""Most requests that are live at a time."""
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"do_sample": True, "temperature": 0.8, "top_p": 0.95},
}
"""Kinds of requests, with their options."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to answer the prompts again.

    Attributes:
        engine: the kind of engine that does it, a key of `ENGINES`.
        at_once: requests that are live at a time.
        fill: requests that there are at least: others stand between those that are compared.
        resumed: each answer begins with its tokens up to some place, at several places.
        lookup: tokens of drafts.
        chunk: tokens of a chunk of a prompt; None: as the engine has it.
        again: everything is asked for twice, and the second answers count.
        policy: what becomes of a request for which there is no room.
    """

    name: str
    engine: str = "roomy"
    at_once: int = 16
    fill: int = 0
    resumed: bool = False
    lookup: int = 0
    chunk: int | None = None
    again: bool = False
    policy: SwapPolicy | None = None

    def prepare(self, engine: Answerer) -> None:
        """Let `engine` work so."""
        scheduler = engine.llm.engine.scheduler
        chunk = engine.chunk_tokens if self.chunk is None else self.chunk
        scheduler.limits = replace(scheduler.limits, chunk_tokens=chunk)
        if self.policy is not None:
            scheduler.cost.policy = self.policy


def settings() -> list[Setting]:
    """All of them; those of one engine follow each other."""
    return [
        *(Setting(f"in a batch of {rows}", at_once=rows, fill=rows) for rows in BATCHES),
        Setting("resumed", at_once=TOGETHER, resumed=True),
        Setting("with drafts", lookup=5),
        *(Setting(f"in chunks of {chunk}", chunk=chunk) for chunk in CHUNKS),
        Setting("with prefix hits", "caching", TOGETHER, again=True),
        Setting("preempted: swap", "small", TOGETHER, policy="swap"),
        Setting("preempted: recompute", "small", TOGETHER, policy="recompute"),
        Setting("on one thread", "on one thread", TOGETHER),
    ]


def _small(options: argparse.Namespace, needs: list[int]) -> LLM:
    """A cache for a quarter of the prompts and their answers."""
    blocks = max(sum(needs) // 4, *needs)
    return load(options, num_blocks=blocks, num_blocks_cpu=4 * blocks, enable_prefix_cache=False)


ENGINES: dict[str, Callable[[argparse.Namespace, list[int]], LLM]] = {
    "roomy": lambda options, _: load(options, enable_prefix_cache=False),
    "caching": lambda options, _: load(options, enable_prefix_cache=True),
    "small": _small,
    "on one thread": lambda options, _: load(options, threads=1, enable_prefix_cache=False),
}
"""By kind: makes an engine for the command's options and the blocks that each prompt and answer need."""


@dataclass(slots=True)
class Counts:
    """What an engine did, where a setting shows nothing unless it does."""

    drafted: int
    hits: int
    preempted: int

    @classmethod
    def of(cls, engine: Answerer) -> Counts:
        stats = engine.llm.engine.stats()
        counters = engine.llm.engine.scheduler.queues.preemptions
        return cls(stats.drafted_tokens, stats.prefix_hits, counters.swapped + counters.recomputed)

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.drafted - before.drafted, self.hits - before.hits, self.preempted - before.preempted
        )
