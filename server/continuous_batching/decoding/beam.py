"""Beam search of one request, step by step.

Follows transformers' ``_beam_search`` decision by decision (candidates, finished beams, the three
kinds of ``early_stopping``) in float32, so that the outputs are the same tokens. Beams hold their
tokens as shared histories; nothing is copied as they grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.scheduler.history import TokenHistory
from server.text.logprob import TokenLogprob

_NEVER = np.float32(-1.0e9)
"""Score that rules a beam out, as in transformers."""


@dataclass(slots=True)
class Candidates:
    """Continuations of a request's beams, best first (or in the order they were drawn).

    Attributes:
        scores: float32 [K], accumulated log probabilities.
        parents: int [K], beam that each continues.
        tokens: int [K].
    """

    scores: np.ndarray
    parents: np.ndarray
    tokens: np.ndarray


@dataclass(slots=True)
class Hypothesis:
    """A finished answer."""

    history: TokenHistory
    stopped: bool
    """Whether a token or string ended it, rather than its length."""
    logprobs: list[TokenLogprob] | None = None


def candidates_needed(params: SamplingParams) -> int:
    """How many continuations a step looks at, so that enough remain if all ends are taken."""
    return max(2, 1 + len(params.eos_token_ids)) * params.num_beams


class BeamSearch:
    """Scores of the running beams and the best finished answers.

    Args:
        params: options of the request.
    """

    def __init__(self, params: SamplingParams) -> None:
        beams = params.num_beams
        self._params = params
        self.scores = np.full(beams, _NEVER, np.float32)
        self.scores[0] = 0.0  # all beams begin equal: only the first may be continued at first
        self._best_scores = np.full(beams, _NEVER, np.float32)
        self._best: list[Hypothesis | None] = [None] * beams
        self._is_finished = np.zeros(beams, bool)
        self._can_improve = True
        self.done = False

    def advance(
        self,
        candidates: Candidates,
        ends: np.ndarray,
        length: int,
        finish: Callable[[int], Hypothesis],
    ) -> np.ndarray:
        """Take one step.

        Args:
            candidates: the best continuations.
            ends: bool [K], whether each is complete.
            length: generated tokens of the candidates.
            finish: makes the hypothesis of a candidate by its index.

        Returns:
            int [num_beams]: indices of the candidates that go on.
        """
        beams = self._params.num_beams
        if not ends.any() and not self._is_finished.any():  # nearly every step of nearly every search
            survivors = _best(candidates.scores, beams)
            self.scores = candidates.scores[survivors]
            return survivors
        running = candidates.scores + ends.astype(np.float32) * _NEVER
        survivors = _best(running, beams)
        self._keep_finished(candidates.scores, ends, length, finish)
        self.scores = running[survivors]
        self._can_improve = self._can_improve and self._may_improve(length)
        all_finished = bool(self._is_finished.all()) and self._params.early_stopping is True
        self.done = not self._can_improve or all_finished or bool(ends.all())
        return survivors

    def _keep_finished(
        self, scores: np.ndarray, ends: np.ndarray, length: int, finish: Callable[[int], Hypothesis]
    ) -> None:
        """Merge what ended now, among the best candidates only, with the best so far."""
        beams = self._params.num_beams
        ended = ends & (np.arange(len(ends)) < beams)
        scores = scores / np.float32(length**self._params.length_penalty)
        if self._params.early_stopping is True and self._is_finished.all():
            scores = scores + _NEVER
        if not self._can_improve:
            scores = scores + _NEVER
        scores = scores + (~ended).astype(np.float32) * _NEVER
        merged = np.concatenate([self._best_scores, scores])
        order = _best(merged, beams)
        self._best = [
            self._best[i] if i < beams else finish(i - beams) if ended[i - beams] else None for i in order
        ]
        self._is_finished = np.concatenate([self._is_finished, ended])[order]
        self._best_scores = merged[order]

    def _may_improve(self, length: int) -> bool:
        """Whether a running beam could still beat the worst finished one."""
        params = self._params
        horizon = length
        if params.early_stopping == "never" and params.length_penalty > 0.0:
            horizon = params.max_new_tokens
        best = self.scores[0] / np.float32(horizon**params.length_penalty)
        worst = np.where(self._is_finished, self._best_scores.min(), _NEVER)
        return bool((best > worst).any())

    def results(self) -> list[Hypothesis]:
        """The answers to return, best first."""
        return [h for h in self._best[: self._params.num_choices] if h is not None]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest scores, largest first."""
    return np.argsort(-scores, kind="stable")[:count]
