"""Masks of grammars: the kernel excludes what the torch form excludes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from server.sampling.lines import GpuLines, Lines
from server.sampling.pipeline import change_scores
from server.sampling.sampling_state import SamplingState
from server.sampling.slot_values import SlotTable
from server.sampling.stages.structured_outputs import StructuredOutputs
from server.sampling.token_table import TokenTable
from server.scheduling.step import SampleInput, SlotStart, StepInput
from tests.sampling.params import params_of

SLOTS = 5
FORM = {"regex": "x"}


def state_of(vocab: int, device: torch.device) -> SamplingState:
    """Slots of which all but the third are held to a form."""
    state = SamplingState(SLOTS, vocab, device, TokenTable(SLOTS, 20, device))
    options = [{} if slot == 2 else {"structured_outputs": FORM} for slot in range(SLOTS)]
    known = np.arange(4, dtype=np.int32)
    state.prepare(
        StepInput(starts=[SlotStart(i, params_of(**some), 0, 1, known) for i, some in enumerate(options)])
    )
    return state


def sample_of(vocab: int, slots: list[int], positions: list[int]) -> tuple[SampleInput, np.ndarray]:
    """Random masks, and which tokens they allow, bool [masks, vocab]."""
    words = -(-vocab // 32)
    masks = np.random.default_rng(vocab).integers(-(2**31), 2**31, (len(slots), words)).astype(np.int32)
    allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocab].astype(bool)
    sample = SampleInput(
        mask_slots=np.array(slots, np.int32), mask_positions=np.array(positions, np.int32), masks=masks
    )
    return sample, allowed


@pytest.mark.parametrize("vocab", [31, 64, 5000])
def test_the_kernel_excludes_what_torch_excludes(device: torch.device, vocab: int) -> None:
    """A slot without a form, one whose mask did not come, and padding stay as they are."""
    state = state_of(vocab, device)
    slots, positions = np.array([4, 2, 0, 3, 1]), np.array([3, 3, 3, 3, 3])
    sample, allowed = sample_of(vocab, [0, 4, 1], [3, 3, 3])
    state.take(sample)
    scores = torch.randn(6, vocab, device=device)
    wanted = scores.clone().cpu()
    for line, mask in ((2, 0), (0, 1), (4, 2)):
        wanted[line, ~torch.from_numpy(allowed[mask])] = float("-inf")
    by_torch = scores.clone()
    (stage,) = (stage for stage in state.stages if isinstance(stage, StructuredOutputs))
    stage.apply(by_torch, Lines.of_step(slots, positions).take(np.flatnonzero(slots != 2)))
    assert stage.needed(Lines.of_step(slots, positions))
    stage.send(Lines.of_step(slots, positions))
    lines = GpuLines(
        torch.tensor([*slots, SLOTS], dtype=torch.int32, device=device),
        torch.tensor([*positions, -1], dtype=torch.int32, device=device),
        SlotTable(6, vocab, torch.float32, device),
    )
    assert stage.launch(scores, lines) is scores
    assert torch.equal(by_torch.cpu(), wanted) and torch.equal(scores.cpu(), wanted)


def test_lines_that_follow_drafted_tokens_have_masks_of_their_own() -> None:
    state = state_of(64, torch.device("cpu"))
    sample, allowed = sample_of(64, [1, 1, 1], [3, 4, 5])
    state.take(sample)
    lines = Lines.of_step(np.array([1, 1, 1]), np.array([5, 3, 4]))
    masks, rows = state.masks(lines)
    assert masks is sample.masks and rows is not None and rows.tolist() == [2, 0, 1]
    scores = torch.zeros(3, 64)
    (stage,) = (stage for stage in state.stages if isinstance(stage, StructuredOutputs))
    stage.apply(scores, lines)
    assert (scores == 0.0).numpy().tolist() == allowed[[2, 0, 1]].tolist()


@pytest.mark.parametrize("more", [{}, {"top_k": 3}, {"num_beams": 2}])
def test_masks_are_applied_where_scores_are_looked_at_before_the_choice(more: dict[str, Any]) -> None:
    state = state_of(64, torch.device("cpu"))
    asked = params_of(structured_outputs=FORM, do_sample="top_k" in more, **more)
    state.prepare(StepInput(starts=[SlotStart(1, asked, 0, 1, np.arange(4, dtype=np.int32))]))
    sample, allowed = sample_of(64, [0, 1], [3, 3])
    state.take(sample)
    scores = torch.zeros(2, 64)
    change_scores(scores, state, Lines.of_step(np.array([0, 1]), np.array([3, 3])))
    assert (scores[0] == 0.0).all()
    assert (scores[1] == 0.0).numpy().tolist() == (allowed[1] if more else np.full(64, True)).tolist()


def test_a_step_without_masks_needs_nothing() -> None:
    state = state_of(64, torch.device("cpu"))
    (stage,) = (stage for stage in state.stages if isinstance(stage, StructuredOutputs))
    state.take(SampleInput())
    assert not stage.needed(Lines.of_step(np.array([1]), np.array([3])))
