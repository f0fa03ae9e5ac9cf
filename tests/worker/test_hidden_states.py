"""Hidden states that a step is asked for are those of transformers, on every way through a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.ops import choose
from server.scheduling.params import SamplingParams
from server.scheduling.step import SampleInput, SlotStart, StepInput, StepResult
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import overlapped_llm

BLOCK = 8
PROMPTS = [[5, 17, 250, 99, 3, 41, 7, 8, 9, 10, 11], [300, 2, 77], [12, 13, 14, 15, 16, 17]]
PARAMS = SamplingParams.of(GenerationConfig(max_new_tokens=4, ignore_eos=True), model_eos=())


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def native(path: Path, monkeypatch: pytest.MonkeyPatch) -> LLM:
    llm = small_llm(path)
    assert llm.capabilities["kernels"]["name"].startswith("native")
    return llm


def layered(path: Path, monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr(choose.native, "objection", lambda *_, **__: "a test")
    return small_llm(path)


def overlapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> LLM:
    """Where tokens stay on the device, as on a GPU."""
    return overlapped_llm(path, monkeypatch, num_blocks=40)


def foreign(path: Path, monkeypatch: pytest.MonkeyPatch) -> LLM:
    """By transformers' modules: a copy of the model under a name that has no file here."""
    from server.models import registry

    others = {name: family for name, family in registry.FAMILIES.items() if name != "llama"}
    monkeypatch.setattr(registry, "FAMILIES", others)
    llm = small_llm(path)
    assert "transformers" in llm.capabilities["kernels"]["name"]
    return llm


def run(llm: LLM, step: StepInput) -> StepResult:
    worker = llm.engine.worker
    worker.launch(step)
    return worker.sample(SampleInput()).read()


@pytest.mark.parametrize("make", [native, layered, overlapped, foreign])
def test_equal_to_transformers(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path, pytest.MonkeyPatch], LLM]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).model
    with torch.inference_mode():
        expected = [model(torch.tensor([p])).last_hidden_state[0].numpy() for p in PROMPTS]
    llm = make(tiny_model, monkeypatch)
    lengths = [len(prompt) for prompt in PROMPTS]
    starts = [SlotStart(i, PARAMS, 0, len(p), ints(*p)) for i, p in enumerate(PROMPTS)]
    # the first prompt comes in two chunks, whose sums are wanted; of the second every token, of the last none
    first = run(
        llm,
        StepInput(
            starts=starts,
            table_groups=ints(0, 0, 0), table_slots=ints(0, 1, 0), table_places=ints(0, 0, 1),
            table_blocks=ints(4, 2, 7),
            chunk_slots=ints(0, 1), chunk_starts=ints(0, 0), chunk_ends=ints(6, lengths[1]),
            chunk_samples=np.array([False, True]),
            state_chunks=ints(0, 1), state_starts=ints(0, 0), state_ends=ints(6, lengths[1]),
            state_sums=np.array([True, False]),
        ),
    )  # fmt: skip
    assert first.states is not None and first.states.dtype == np.float32
    np.testing.assert_allclose(first.states[0], expected[0][:6].sum(0), atol=1e-4)
    np.testing.assert_allclose(first.states[1:], expected[1], atol=1e-4)
    second = run(
        llm,
        StepInput(
            table_groups=ints(0), table_slots=ints(2), table_places=ints(0), table_blocks=ints(9),
            decode_slots=ints(1), decode_positions=ints(lengths[1]),
            chunk_slots=ints(2, 0), chunk_starts=ints(0, 6), chunk_ends=ints(lengths[2], lengths[0]),
            chunk_samples=np.array([True, False]),
            state_chunks=ints(1, 1), state_starts=ints(6, lengths[0] - 1), state_ends=ints(*[lengths[0]] * 2),
            state_sums=np.array([True, False]),
        ),
    )  # fmt: skip
    assert second.states is not None and second.states.shape == (2, expected[0].shape[1])
    pooled = (first.states[0] + second.states[0]) / lengths[0]
    np.testing.assert_allclose(pooled, expected[0].mean(0), atol=1e-4)
    np.testing.assert_allclose(second.states[1], expected[0][-1], atol=1e-4)
    assert second.tokens.shape[0] == 2  # the decode and the last prompt are chosen as ever


def test_a_step_for_states_alone(tiny_model: Path) -> None:
    """Nothing is sampled; and a step that wants none gives none."""
    llm, prompt = small_llm(tiny_model), PROMPTS[1]
    step = StepInput(
        starts=[SlotStart(0, PARAMS, 0, len(prompt), ints(*prompt))],
        table_groups=ints(0), table_slots=ints(0), table_places=ints(0), table_blocks=ints(3),
        chunk_slots=ints(0), chunk_starts=ints(0), chunk_ends=ints(len(prompt)),
        chunk_samples=np.zeros(1, bool),
        state_chunks=ints(0), state_starts=ints(1), state_ends=ints(len(prompt)), state_sums=np.ones(1, bool),
    )  # fmt: skip
    found = run(llm, step)
    assert found.states is not None and found.states.shape[0] == 1 and len(found.tokens) == 0
    sampled = StepInput(decode_slots=ints(0), decode_positions=ints(len(prompt) - 1))
    assert run(llm, sampled).states is None
