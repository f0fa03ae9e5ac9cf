"""The messages to and from a worker are plain data: it can be in another process."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.scheduling.params import PromptLookup, SamplingParams
from server.scheduling.step import SampleInput, StepInput, StepResult
from server.text.logprob import TokenLogprob
from tests.continuous_batching.drafts import FreeDrafts
from tests.continuous_batching.engines import small_llm

PLAIN = (int, float, str, bool, bytes, type(None), np.ndarray, np.dtype, frozenset, tuple, list, dict)
OPTIONS: list[dict[str, Any]] = [
    {}, {"num_beams": 3, "num_return_sequences": 2, "logprobs": 2}, {"do_sample": True, "n": 3, "seed": 7},
    {"repetition_penalty": 1.4, "logprobs": 1}, {"prompt_lookup_num_tokens": 6},
    {"num_beams": 2, "do_sample": True, "seed": 4, "min_new_tokens": 5},
]  # fmt: skip


class Wire:
    """Sends everything that goes to and comes from a worker through pickle, and counts what it was."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.seen: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def _send(self, message: Any) -> Any:
        self.seen[type(message).__name__] += 1
        return pickle.loads(pickle.dumps(message))

    def swap(self, step: StepInput) -> None:
        self._worker.swap(self._send(step))

    def copy(self, step: StepInput) -> None:
        self._worker.copy(self._send(step))

    def launch(self, step: StepInput) -> None:
        self._worker.launch(self._send(step))

    def sample(self, sample: SampleInput) -> Any:
        choice = self._worker.sample(self._send(sample))

        class Answer:
            def read(_) -> StepResult:
                result: StepResult = self._send(choice.read())
                return result

        return Answer()


def generate(llm: LLM) -> list[tuple[list[int], list[TokenLogprob] | None]]:
    assert llm.engine.scheduler.speculator is not None
    llm.engine.scheduler.speculator.cost = FreeDrafts()
    prompts = [[5 + i, 7, 9, 5 + i, 7] * (1 + i % 4) for i in range(24)]
    configs = [
        GenerationConfig(**{"max_new_tokens": 30, "ignore_eos": True, **OPTIONS[i % len(OPTIONS)]})
        for i in range(24)
    ]
    return [(a.token_ids, a.logprobs) for g in llm.generate(prompts, configs) for a in g.answers]


@pytest.mark.parametrize("swap_policy", ["swap", "recompute"])
def test_answers_are_those_of_a_worker_elsewhere(tiny_model: Path, swap_policy: str) -> None:
    """All strategies together, with drafts and under pressure."""
    sizes: dict[str, Any] = {"num_blocks": 60, "num_blocks_cpu": 50, "swap_policy": swap_policy}
    expected = generate(small_llm(tiny_model, **sizes))
    llm = small_llm(tiny_model, **sizes)
    wire: Any = Wire(llm.engine.worker)
    llm.engine.worker = llm.engine._isolation._worker = wire
    assert generate(llm) == expected
    stats = llm.engine.stats()
    assert stats.preempted_by_swap + stats.preempted_by_recompute > 0 and stats.accepted_tokens > 0
    assert set(wire.seen) == {"StepInput", "SampleInput", "StepResult"}


def test_messages_hold_plain_data_only() -> None:
    """Arrays, numbers and options; no request, no sequence, no tensor."""

    def check(value: Any) -> None:
        if hasattr(value, "__dataclass_fields__"):
            for name in value.__dataclass_fields__:
                check(getattr(value, name))
        else:
            assert isinstance(value, PLAIN), type(value)

    for message in (StepInput(), SampleInput(), StepResult(np.zeros((1, 1)), np.ones(1))):
        check(message)
    check(SamplingParams(max_new_tokens=3, prompt_lookup=PromptLookup(2, 2)))
