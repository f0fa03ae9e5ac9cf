"""The messages to and from a worker are plain data: it can be in another process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.scheduling.params import PromptLookup, SamplingParams
from server.scheduling.request import Request
from server.scheduling.step import SampleInput, SlotStart, StepInput, StepResult
from server.text.logprob import TokenLogprob
from tests.continuous_batching.drafts import FreeDrafts
from tests.continuous_batching.engines import small_llm

OPTIONS: list[dict[str, Any]] = [
    {}, {"num_beams": 3, "num_return_sequences": 2, "logprobs": 2}, {"do_sample": True, "n": 3, "seed": 7},
    {"repetition_penalty": 1.4, "logprobs": 1}, {"prompt_lookup_num_tokens": 6},
    {"num_beams": 2, "do_sample": True, "seed": 4, "min_new_tokens": 5},
]  # fmt: skip


def sent(message: Any) -> Any:
    """`message` as another process gets it: fields, numbers, texts and arrays are all that can be sent.

    What is no such thing (a request, a sequence, a tensor) is a TypeError.
    """

    def array(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a {type(value).__name__} cannot be sent")
        return value.dtype.str, value.shape, value.tobytes()

    def restore(kind: type, value: Any) -> Any:
        assert kind is np.ndarray
        dtype, shape, content = value
        return np.frombuffer(content, dtype).reshape(shape).copy()

    content = msgspec.msgpack.encode(message, enc_hook=array)
    return msgspec.msgpack.decode(content, type=type(message), dec_hook=restore)


class Wire:
    """Sends everything that goes to and comes from a worker as bytes, and counts what it was."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.seen: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def _send(self, message: Any) -> Any:
        self.seen[type(message).__name__] += 1
        return sent(message)

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


@pytest.mark.parametrize(
    "message",
    [
        StepInput(starts=[object()]),  # type: ignore[list-item]
        StepInput(decode_slots=torch.zeros(2, dtype=torch.int32)),  # type: ignore[arg-type]
        SampleInput(beam_scores=Request("r", [1], SamplingParams(max_new_tokens=1), 0.0)),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_plain_data_cannot_be_sent(message: Any) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        sent(message)


def test_what_is_sent_arrives_as_it_was() -> None:
    params = SamplingParams(max_new_tokens=3, stop=("a",), prompt_lookup=PromptLookup(2, 2))
    start = SlotStart(1, params, 0, 2, np.array([4, 5], np.int32))
    step = StepInput(
        starts=[start], chunk_samples=np.array([True, False]), written_blocks=frozenset({(0, 3), (1, 2)})
    )
    other = sent(step)
    assert other.starts[0].params == params and other.written_blocks == step.written_blocks
    assert other.starts[0].tokens.tolist() == [4, 5] and other.starts[0].tokens.dtype == np.int32
    assert other.chunk_samples.tolist() == [True, False] and other.copies.shape == (0, 3)
