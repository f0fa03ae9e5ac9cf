"""Parameters and states of sampling for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from protocol.generation import GenerationConfig
from server.sampling.sampling_state import SamplingState
from server.sampling.token_table import TokenTable
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart, StepInput

TOKENS = np.array([1, 2, 3, 2, 2, 5], np.int32)
"""Of every slot: a prompt of three, and three more."""


def params_of(ends: tuple[int, ...] = (), **options: Any) -> SamplingParams:
    """As of a request for at most nine tokens, of a model with `ends`."""
    return SamplingParams.of(GenerationConfig(**{"max_new_tokens": 9, **options}), ends)


def state_of(*params: SamplingParams, vocab: int = 24, tokens: np.ndarray = TOKENS) -> SamplingState:
    """A slot for each."""
    cpu = torch.device("cpu")
    state = SamplingState(len(params), vocab, cpu, TokenTable(len(params), 50, cpu))
    starts = [SlotStart(slot, options, 0, 3, tokens) for slot, options in enumerate(params)]
    state.prepare(StepInput(starts=starts))
    return state
