"""Every family's model, split, gives the tokens that transformers gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.continuous_batching.ranks.threads import split_llm
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact
from tests.models.small_models import MODELS, save

DIVISIBLE = {"intermediate_size": 96, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
QUICK = {"cohere-even", "gemma3-window-5-capped", "gpt2", "gpt-neox", "gpt-oss-window-6", "olmoe", "glm4"}
"""Of each thing that is split in a way of its own, one; the others at night."""


def check(path: Path, name: str, ranks: int) -> None:
    """Swaps, prompts in chunks, shared beginnings, beams; as few requests as do all of it."""
    kind, fields = MODELS[name]
    save(path, kind, fields | {key: DIVISIBLE[key] for key in DIVISIBLE})
    reference = Reference(path)
    requests = mixed_requests(reference, 8, seed=3, longest=20, longest_prompt=50)
    requests = [(prompt, options.model_copy(update={"stop": []})) for prompt, options in requests]
    llm = split_llm(
        path,
        ranks,
        model_loading_config={"model_max_length": 400},
        batcher_config={"batch_max_tokens": 40, "batch_max_beams": 32, "prefill_chunk_tokens": 13},
        cache_config={"num_blocks": 26, "num_blocks_cpu": 60, "block_size": 8, "watermark": 0.0},
    )
    assert llm.capabilities["ranks"]["count"] == ranks
    assert_exact(llm, reference, requests)


@pytest.mark.parametrize("name", sorted(QUICK))
def test_two_ranks(tmp_path: Path, name: str) -> None:
    check(tmp_path, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_all_families(tmp_path: Path, name: str, ranks: int) -> None:
    check(tmp_path, name, ranks)
