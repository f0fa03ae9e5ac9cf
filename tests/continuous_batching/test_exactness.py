"""Greedy and beam search give the very tokens that transformers gives, whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference, mixed_requests, reporting_beams

Requests = list[tuple[list[int], GenerationConfig]]


def assert_exact(llm: LLM, reference: Reference, requests: Requests) -> None:
    """Run all requests at once and compare every answer, and that nothing is left behind."""
    prompts, configs = [p for p, _ in requests], [c for _, c in requests]
    generations = llm.generate(prompts, configs)
    wrong = []
    for (prompt, config), generation in zip(requests, generations, strict=True):
        expected = reference.answers(prompt, config)
        if [answer.token_ids for answer in generation.answers] != expected:
            wrong.append((prompt, config.model_dump(exclude_defaults=True)))
    assert not wrong, f"{len(wrong)} of {len(requests)} differ, the first: {wrong[0]}"
    llm.engine.check()
    stats = llm.engine.stats()
    assert (stats.running, stats.waiting, stats.swapped, stats.running_rows) == (0, 0, 0, 0)
    assert stats.cache_usage == stats.host_cache_usage == 0.0


def test_long_prompts_in_an_ample_cache(tiny_model: Path, reference: Reference) -> None:
    requests = mixed_requests(reference, 40, seed=2, longest=40, longest_prompt=300)
    assert_exact(small_llm(tiny_model, num_blocks=3000), reference, requests)


@pytest.mark.parametrize(
    ("count", "preempted"),
    [(60, 30), pytest.param(140, 100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])],
)
def test_mixed_requests_under_pressure(
    tiny_model: Path, reference: Reference, count: int, preempted: int
) -> None:
    """The cache is so small that requests are swapped out and recomputed again and again."""
    mixed = mixed_requests(reference, count, seed=1, longest=300, longest_prompt=40)
    llm = small_llm(
        tiny_model,
        num_blocks=90,
        num_blocks_cpu=16,
        beams=96,
        tokens=256,
        watermark=0.0,
        swap_policy="swap",  # a full host pool means recomputation all the same
    )
    assert_exact(llm, reference, mixed)
    stats = llm.engine.stats()
    assert stats.preempted_by_swap >= preempted
    assert stats.preempted_by_recompute >= preempted
    assert stats.prefix_hits > 0 and stats.copies_on_write > 0


@pytest.mark.parametrize("policy", ["swap", "recompute"])
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_every_way_to_make_room(
    tiny_model: Path, reference: Reference, policy: str, prefix_cache: bool
) -> None:
    requests = mixed_requests(reference, 40, seed=3, longest=80, longest_prompt=40)
    llm = small_llm(
        tiny_model,
        num_blocks=48,
        num_blocks_cpu=48,
        watermark=0.0,
        swap_policy=policy,
        enable_prefix_cache=prefix_cache,
    )
    assert_exact(llm, reference, requests)
    stats = llm.engine.stats()
    assert (stats.preempted_by_swap if policy == "swap" else stats.preempted_by_recompute) > 0
    assert policy == "swap" or stats.preempted_by_swap == 0
    assert prefix_cache == (stats.prefix_hits > 0) or policy == "recompute"


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 63, 64, 65])
def test_prompts_around_block_and_chunk_boundaries(
    tiny_model: Path, reference: Reference, length: int
) -> None:
    prompt = [(7 * i) % 500 + 3 for i in range(length)]
    configs = [
        GenerationConfig(max_new_tokens=10),
        GenerationConfig(max_new_tokens=1),
        GenerationConfig(max_new_tokens=9, num_beams=3, num_return_sequences=3),
    ]
    assert_exact(small_llm(tiny_model, chunk=32), reference, [(prompt, config) for config in configs])


def test_shared_prompt_is_computed_once(tiny_model: Path, reference: Reference) -> None:
    """Even by requests that arrive together: whoever comes second reuses what the first computes."""
    system = [(11 * i) % 500 + 3 for i in range(200)]
    requests = [([*system, 3 + i, 40 + i], GenerationConfig(max_new_tokens=8)) for i in range(16)]
    llm = small_llm(tiny_model, tokens=1024, chunk=1024)
    assert_exact(llm, reference, requests)
    assert llm.engine.stats().computed_prompt_tokens == 200 + 2 * 16


@pytest.mark.parametrize("num_blocks", [500, 40])
def test_beams_report_log_probabilities(tiny_model: Path, reference: Reference, num_blocks: int) -> None:
    """Each beam those of its own tokens, also where it took another's place, and after swaps."""
    requests = reporting_beams(reference, 20)
    llm = small_llm(tiny_model, num_blocks=num_blocks, num_blocks_cpu=40, swap_policy="swap")
    generations = llm.generate([prompt for prompt, _ in requests], [config for _, config in requests])
    assert not reference.contradicted(requests, generations)
    assert not reference.misreported(requests, generations)
    assert (llm.engine.stats().preempted_by_swap > 0) == (num_blocks < 100)
