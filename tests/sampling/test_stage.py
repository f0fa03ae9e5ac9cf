"""What a stage may rely on, shown with one that is known here alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from protocol.generation import GenerationConfig
from server.continuous_batching import LLM
from server.sampling import sampling_state
from server.sampling.lines import GpuLines, Lines
from server.sampling.sampling_state import SamplingState, table_bytes
from server.sampling.stage import EXCLUDED, SlotSpace, Stage
from server.sampling.stages import STAGES
from server.sampling.stages.penalties import Penalties
from server.sampling.token_table import TokenTable
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart, StepInput
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.overlapped import choice_of, overlapped_llm
from tests.sampling.params import params_of


class ByPlace(Stage):
    """With ``top_k: k``, the token at place p is one whose id leaves p mod k when divided by k.

    The host fills the masks of a step, as it would by a grammar, and the device applies them in a graph.
    """

    options = ("top_k",)
    only_masks = True
    in_graph = True
    bytes_per_token = 1

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._divisors = self.values(1, whole=True)
        self._masks = self.table(torch.bool)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.options["top_k"])

    def assign(self, start: SlotStart) -> None:
        self._divisors.set(start.slot, start.params.options["top_k"])

    def _excluded(self, lines: Lines) -> Tensor:
        divisors = self._divisors.host[0, lines.slots][:, None]
        tokens = np.arange(self.space.vocab_size)
        return self.on_device(tokens % divisors != (lines.positions[:, None] + 1) % divisors)

    def apply(self, scores: Tensor, lines: Lines) -> None:
        at = self.on_device(lines.at)
        scores[at] = scores[at].masked_fill(self._excluded(lines), EXCLUDED)

    def send(self, lines: Lines) -> None:
        self._masks.tensor[self.on_device(lines.slots)] = self._excluded(lines)

    def release(self, slot: int) -> None:
        super().release(slot)
        self._masks.tensor[slot] = False

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        slots = lines.slots.clamp(max=self.space.num_slots - 1).long()
        return scores.masked_fill_(self._masks.tensor[slots], EXCLUDED)


def answers(llm: LLM) -> list[list[int]]:
    options = [{"top_k": 3}, {}, {"top_k": 7}, {"top_k": 2, "repetition_penalty": 1.2}, {"top_k": 5}]
    configs = [GenerationConfig(max_new_tokens=8, ignore_eos=True, **chosen) for chosen in options]
    configs[4] = configs[4].model_copy(update={"num_beams": 2})
    prompts = [[5 + i, 7, 9] * (1 + i) for i in range(5)]
    found = [generation.answers[0].token_ids for generation in llm.generate(prompts, configs)]
    for prompt, config, answer in zip(prompts, configs, found, strict=True):
        k = config.top_k or 1
        assert all(token % k == (len(prompt) + i) % k for i, token in enumerate(answer))
    return found


@pytest.mark.parametrize("replayed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_masks_that_the_host_fills(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, replayed: bool) -> None:
    monkeypatch.setattr(sampling_state, "STAGES", [Penalties, ByPlace])
    expected = answers(small_llm(tiny_model))
    llm = overlapped_llm(tiny_model, monkeypatch, num_blocks=400, replayed=replayed)
    assert answers(llm) == expected
    assert bool(choice_of(llm)._captured) == replayed
    assert llm.engine.stats().step_failures == 0


def test_memory_goes_by_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table_bytes(10, 100)
    monkeypatch.setattr(sampling_state, "STAGES", [*STAGES, ByPlace])
    assert table_bytes(10, 100) == before + 1000


def test_a_slot_that_changes_hands_wants_what_its_owner_wants() -> None:
    """Also on the device, where 0 turns a stage off; filters are for tokens that are drawn."""
    cpu = torch.device("cpu")
    state = SamplingState(1, 20, cpu, TokenTable(1, 20, cpu))
    names = [type(stage).__name__ for stage in state.stages]
    owners = [
        (params_of(repetition_penalty=1.5, do_sample=True, top_p=0.5), {"Penalties", "Truncation"}),
        (params_of(no_repeat_ngram_size=2, top_p=0.5), {"NoRepeatNgram"}),
        (params_of((1,), min_new_tokens=2, logit_bias={3: 1.0}), {"LogitBias", "MinNewTokens"}),
        (params_of(min_new_tokens=2), set()),
    ]
    for params, wanted in owners:
        start = SlotStart(0, params, 0, 1, np.array([1], np.int32))
        state.prepare(StepInput(starts=[start]))
        state.flush()
        assert {name for name, on in zip(names, state.wanting[:, 0], strict=True) if on} == wanted
        for name, stage in zip(names, state.stages, strict=True):
            for values in stage.kept_values:
                assert bool(values.on_device.any()) == (name in wanted)
