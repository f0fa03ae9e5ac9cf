"""Families on the C++ kernels give the same tokens and log probabilities, to the last bit, in any company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.same_bits.answers import Answerer, Asked, Told
from tests.continuous_batching.engines import small_llm
from tests.models.small_models import MODELS, save

TOKENS = 24
ASKED = [
    Asked(
        f"{index}",
        [(13 * i + 5 * index) % 500 + 3 for i in range(length)],
        {"max_new_tokens": TOKENS} | ({"do_sample": True, "seed": index} if index % 2 else {}),
    )
    for index, length in enumerate((40, 5, 33, 18, 26, 9, 50))
]
NATIVE = [name for name in MODELS if name.endswith("-even")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NATIVE)
def test_answers_alone_and_in_any_company(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, *MODELS[name])
    sizes: dict[str, Any] = {"dtype": "bfloat16", "max_length": 400, "watermark": 0.0, "tokens": 64}
    llm = small_llm(path, **sizes, enable_prefix_cache=False)
    assert llm.capabilities["same_bits"]["promised"]
    engine = Answerer(llm)
    alone = engine.answer(ASKED, 1)
    assert parted(engine.answer(ASKED, 7), alone) == []
    llm.engine.scheduler.limits = replace(llm.engine.scheduler.limits, chunk_tokens=7)
    assert parted(engine.answer(ASKED, 7), alone) == []
    resumed = [replace(one, emitted=alone[one.name].tokens[:cut]) for cut in (1, 13) for one in ASKED]
    for part in (resumed[: len(ASKED)], resumed[len(ASKED) :]):
        assert parted(engine.answer(part, 7), alone) == []
    for policy in ("swap", "recompute"):
        little = small_llm(path, **sizes, num_blocks=26, num_blocks_cpu=80, swap_policy=policy)
        assert parted(Answerer(little).answer(ASKED, 7), alone) == []
        stats = little.engine.stats()
        assert stats.preempted_by_swap + stats.preempted_by_recompute > 0


def parted(told: dict[str, Told], alone: dict[str, Told]) -> list[str]:
    """The requests whose answers differ."""
    return [name for name, answer in told.items() if answer.part_from(alone[name]) is not None]
