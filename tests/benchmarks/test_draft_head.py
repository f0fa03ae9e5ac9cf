"""The forced head of the benchmark has the acceptance rate that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkpoints import SHAPES, LlamaShape
from benchmarks.gpu import draft_head, speculation
from protocol.generation import GenerationConfig
from server.scheduling.speculation.by_model import ModelSpeculator
from tests.continuous_batching.drafts import FreeDrafts, FreeModel

TINY = LlamaShape(256, 8, 4, 2, 256, vocab=14_000, max_length=1_024)


def test_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    monkeypatch.setattr("server.ops.torch.packed.objection", lambda _: "its weights are to be changed")
    llm = draft_head.load("tiny", "1600", tmp_path, 4, 4)
    speculator = llm.engine.scheduler.speculator
    assert isinstance(speculator, ModelSpeculator)
    speculator.cost, speculator.draft_cost = FreeDrafts(), FreeModel()
    asked = speculation.prompts("new", 3, TINY.vocab)
    follow = speculation.followers(TINY.vocab).tolist()
    for rate in (1.0, 0.7, 0.0):
        draft_head.force_head(speculator, rate)
        before: Any = llm.engine.stats()
        found = llm.generate(asked, GenerationConfig(max_new_tokens=80, ignore_eos=True))
        after: Any = llm.engine.stats()
        for prompt, generation in zip(asked, found, strict=True):
            tokens = [prompt[-1], *generation.answers[0].token_ids]
            assert tokens[1:] == [follow[token] for token in tokens[:-1]]
        drafted, accepted = (
            getattr(after, name) - getattr(before, name) for name in ("drafted_tokens", "accepted_tokens")
        )
        tried = drafted if rate in (0.0, 1.0) else sum(0.7**i for i in range(1, 5)) / 4 * drafted / 0.7
        assert drafted > 100 and abs(accepted / tried - rate) < 0.15
