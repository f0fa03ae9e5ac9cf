"""A split model answers as one in one piece does, whatever is asked and whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from tests.continuous_batching.drafts import FreeDrafts
from tests.continuous_batching.ranks.threads import split_llm
from tests.continuous_batching.reference import Reference, mixed_requests, reporting_beams
from tests.continuous_batching.test_exactness import assert_exact

RANKS = pytest.mark.parametrize("ranks", [2, 4])


def sections(num_blocks: int = 400, num_blocks_cpu: int = 100, **cache: Any) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_max_length": 1024},
        "batcher_config": {"batch_max_tokens": 96, "batch_max_beams": 32, "prefill_chunk_tokens": 64},
        "cache_config": {
            "num_blocks": num_blocks, "num_blocks_cpu": num_blocks_cpu, "block_size": 8, **cache,
        },
    }  # fmt: skip


@pytest.mark.parametrize(("ranks", "policy"), [(2, "swap"), (2, "recompute"), (4, "swap")])
def test_mixed_requests_under_pressure(
    tiny_model: Path, reference: Reference, ranks: int, policy: str
) -> None:
    """More ranks than key heads, a cache too small for all, shared beginnings, beams that split and move."""
    requests = mixed_requests(reference, 16, seed=3, longest=50, longest_prompt=40)
    pressed = sections(40, 48, watermark=0.0, swap_policy=policy)
    llm = split_llm(tiny_model, ranks, **pressed)
    assert_exact(llm, reference, requests)
    stats = llm.engine.stats()
    assert (stats.preempted_by_swap if policy == "swap" else stats.preempted_by_recompute) > 0
    assert stats.copies_on_write > 0


@RANKS
def test_a_beginning_that_is_in_the_cache(tiny_model: Path, reference: Reference, ranks: int) -> None:
    system = [(11 * i) % 500 + 3 for i in range(100)]
    requests = [([*system, 3 + i, 40 + i], GenerationConfig(max_new_tokens=8)) for i in range(6)]
    llm = split_llm(tiny_model, ranks, **sections())
    assert_exact(llm, reference, requests)
    assert llm.engine.stats().prefix_hits > 0


OPTIONS: list[dict[str, Any]] = [
    {"do_sample": True, "n": 3, "seed": 7},
    {"do_sample": True, "top_k": 20, "top_p": 0.9, "seed": 3, "temperature": 1.4},
    {"do_sample": True, "min_p": 0.02, "seed": 5, "repetition_penalty": 1.2, "logprobs": 3},
    {"do_sample": True, "typical_p": 0.7, "seed": 8, "logit_bias": {7: 4.0, 9: -100.0}},
    {"num_beams": 2, "do_sample": True, "seed": 4, "min_new_tokens": 5},
    {"prompt_lookup_num_tokens": 6, "max_new_tokens": 60, "ignore_eos": True},
    {"structured_outputs": {"regex": "(ab|cd)*e"}},
    {"structured_outputs": {"choice": ["yes", "no"]}, "do_sample": True, "seed": 2},
    {"prompt_logprobs": 2, "max_new_tokens": 3},
]


def answers(llm: LLM) -> list[Any]:
    """Of every option, alone and beside the others."""
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    prompts = [[5 + i, 7, 9, 5 + i, 7] * (1 + i % 4) for i in range(18)]
    configs = [GenerationConfig(**{"max_new_tokens": 20, **OPTIONS[i % len(OPTIONS)]}) for i in range(18)]
    generations = llm.generate(prompts, configs)
    assert llm.engine.stats().accepted_tokens > 0 and llm.engine.stats().step_failures == 0
    return [[answer.token_ids for answer in generation.answers] for generation in generations]


@RANKS
def test_every_way_to_choose_tokens(looping_model: Path, ranks: int) -> None:
    """Seeds, filters, penalties, grammars and drafts: as with one rank."""
    whole = sections()
    whole["model_loading_config"] |= {"torch_dtype": "float32", "device": "cpu"}
    parts = split_llm(looping_model, ranks, **sections())
    assert answers(parts) == answers(LLM(looping_model, **whole))


def test_log_probabilities_of_beams(tiny_model: Path, reference: Reference) -> None:
    requests = reporting_beams(reference, 6)
    llm = split_llm(tiny_model, 2, **sections(40, 40, swap_policy="swap"))
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    assert not reference.misreported(requests, generations)
