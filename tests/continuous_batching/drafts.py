"""Engines and requests whose drafts are computed whether they pay or not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.same_bits.answers import FreeDrafts as FreeDrafts
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.scheduling.speculation.payoff import DraftCost
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference

Options = dict[str, Any]
Requests = list[tuple[list[int], GenerationConfig]]


class FreeModel(DraftCost):
    """Drafts of a model cost nothing, so that all are made, whatever the machine is doing."""

    def curve(self, rows: int, most: int) -> list[float]:
        return [0.0] * (most + 1)


PROMPT = [9, 8, 7, 6, 9, 8, 7, 6, 30, 31]
KINDS: dict[str, Options] = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.3, "seed": 5},
    "several": {"do_sample": True, "temperature": 0.4, "seed": 6, "n": 3},
    "filtered": {"do_sample": True, "temperature": 0.5, "top_k": 5, "top_p": 0.9, "seed": 7},
    "penalised": {"repetition_penalty": 1.02, "presence_penalty": 0.05, "frequency_penalty": 0.01},
    "worn out": {"logit_bias": {"40": 40.0, "41": 36.5, "42": 35.0}, "frequency_penalty": 1.0},
    "held open": {"min_new_tokens": 30, "eos_token_id": list(range(3, 200))},
    "biased": {"logit_bias": {"40": 2.0, "41": -5.0}},
    "unrepeated": {"no_repeat_ngram_size": 5},
    "reported": {"logprobs": 3},
    "beams": {"num_beams": 3},
}


def options(kind: str, drafted: int) -> Options:
    lookup = {} if kind == "beams" else {"prompt_lookup_num_tokens": drafted}
    return {"max_new_tokens": 60, "ignore_eos": "eos_token_id" not in KINDS[kind]} | KINDS[kind] | lookup


def drafting_llm(path: Path, **sizes: Any) -> LLM:
    """An engine that computes every draft it can make."""
    llm = small_llm(path, **sizes)
    llm.engine.scheduler.speculator.cost = FreeDrafts()
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
