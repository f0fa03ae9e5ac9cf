"""Engines and requests whose drafts are computed whether they pay or not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.continuous_batching.speculation.payoff import StepCost
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference

Options = dict[str, Any]
Requests = list[tuple[list[int], GenerationConfig]]


class FreeDrafts(StepCost):
    """Drafted tokens save time, so that all are computed, however fast the tests run."""

    def is_stale(self, tokens: int) -> bool:
        return False

    def seconds(self, tokens: int) -> float:
        return 0.0

    def curve(self, first: int, last: int) -> np.ndarray:
        return -np.arange(last + 1.0 - first)


def drafting_llm(path: Path, **sizes: Any) -> LLM:
    """An engine that computes every draft it can make."""
    llm = small_llm(path, **sizes)
    speculator = llm.engine.scheduler.speculator
    assert speculator is not None
    speculator.cost = FreeDrafts()
    return llm


def with_lookup(requests: Requests, seed: int) -> Requests:
    """The same requests, all but beams with drafts."""
    rng = random.Random(seed)
    return [
        (prompt, config)
        if config.num_beams > 1
        else (
            prompt,
            config.model_copy(
                update={
                    "prompt_lookup_num_tokens": rng.choice([1, 2, 5, 10]),
                    "max_matching_ngram_size": rng.choice([1, 2, 4]),
                }
            ),
        )
        for prompt, config in requests
    ]


def repetitive(reference: Reference, requests: Requests, seed: int) -> Requests:
    """The same requests with prompts of repeated passages."""
    rng = random.Random(seed)
    return [(prompt[: rng.randint(1, 12)] * rng.randint(2, 6), config) for prompt, config in requests]
