"""The tokens of a step, on their way to those who asked for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.sampling.beam_continuations import PendingCandidates
from server.sampling.hidden_states import StepStates
from server.sampling.logprobs import StepLogprobs
from server.sampling.prompt_scores import PromptScores
from server.sampling.verification import DraftLines
from server.scheduling.step import StepResult


@dataclass(slots=True)
class ChosenTokens:
    """Tokens that the host knows already."""

    result: StepResult
    is_ready = True

    def read(self) -> StepResult:
        """All of them."""
        return self.result


class PendingTokens:
    """Tokens that were chosen on the device and are on their way to the host.

    Args:
        tokens: int32 [lines] in memory of the host; sent after everything else here.
        stored: the event after which they are there; None: they are already.
        logprobs: to be reported with them; sent already.
        prompts: the same of prompts.
        states: hidden states, sent already.
        drafts: which of the lines follow drafted tokens.
        candidates: continuations of beams, sent already.
    """

    def __init__(
        self,
        tokens: Tensor,
        stored: torch.cuda.Event | None,
        logprobs: StepLogprobs,
        prompts: PromptScores | None = None,
        states: StepStates | None = None,
        drafts: DraftLines | None = None,
        candidates: PendingCandidates | None = None,
    ) -> None:
        self._tokens = tokens
        self._stored = stored
        self._logprobs = logprobs
        self._prompts = prompts
        self._states = states
        self._drafts = drafts
        self._candidates = candidates

    @property
    def is_ready(self) -> bool:
        """Whether they have come."""
        return self._stored is None or bool(self._stored.query())  # type: ignore[no-untyped-call]

    def read(self) -> StepResult:
        """Wait for them."""
        if self._stored is not None:
            self._stored.synchronize()
        result = result_of(self._tokens.numpy(), self._logprobs, self._drafts)
        result.prompts = None if self._prompts is None else self._prompts.read()
        result.states = None if self._states is None else self._states.read()
        if self._candidates is not None:
            result.candidates = self._candidates.read()
        return result


def result_of(tokens: np.ndarray, logprobs: StepLogprobs, drafts: DraftLines | None = None) -> StepResult:
    """The result of a step: of each draft, the tokens up to the first that it did not foresee.

    Args:
        tokens: integers [lines], chosen on every line.
        logprobs: sent already.
    """
    if drafts is not None:
        lines, counts = drafts.chosen_lines(tokens)
        return StepResult(tokens[lines], counts, logprobs.report(lines))
    count = len(tokens)
    reports = logprobs.report(np.arange(count)[:, None]) if logprobs else None
    return StepResult(tokens[:, None], np.ones(count, np.int64), reports)
