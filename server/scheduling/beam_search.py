"""Beam search of one request, step by step.

Follows transformers' ``_beam_search`` decision by decision (candidates, finished beams, the three
kinds of ``early_stopping``) in float32, so that the outputs are the same tokens. Only where
transformers would take a score below its -1e9 for an answer that is not there, the answer stays. Beams
hold their tokens as shared histories; nothing is copied as they grow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.scheduling.history import TokenHistory
from server.scheduling.params import SamplingParams
from server.text.logprob import TokenLogprob

_LAST = np.float32(-1.0e30)
"""Puts a beam behind all others: far below what options within their bounds can make of a score, and
far above -inf, which only a token has that was filtered out."""

_FLOAT32 = np.finfo(np.float32)


@dataclass(slots=True)
class Candidates:
    """Continuations of a request's beams.

    Attributes:
        scores: float32 [K], accumulated log probabilities.
        parents: [K], beam that each continues.
        tokens: [K].
        stops: bool [K], whether the token is one that ends an answer.
        ranked: they stand best first, rather than in the order that they were drawn in.
        logprobs: float32 [K], of the tokens alone, where they are to be reported.
    """

    scores: np.ndarray
    parents: list[int]
    tokens: list[int]
    stops: np.ndarray
    ranked: bool
    logprobs: np.ndarray | None = None


@dataclass(slots=True)
class Hypothesis:
    """A finished answer."""

    history: TokenHistory
    stopped: bool
    """Whether a token or string ended it, rather than its length."""
    logprobs: list[TokenLogprob] | None = None


def candidates_needed(params: SamplingParams) -> int:
    """How many continuations a step considers, so that enough remain if every end token is among them."""
    return max(2, 1 + len(params.eos_token_ids)) * params.num_beams


class BeamSearch:
    """Scores of the running beams and the best finished answers.

    Args:
        params: options of the request.
    """

    def __init__(self, params: SamplingParams) -> None:
        beams = params.num_beams
        self._params = params
        self.scores = np.full(beams, _LAST, np.float32)
        self.scores[0] = 0.0  # all beams begin equal: only the first may be continued at first
        self._best_scores = np.empty(0, np.float32)  # of the finished answers, at most one a beam
        self._best: list[Hypothesis] = []
        self.done = False

    def advance(
        self,
        candidates: Candidates,
        ends: np.ndarray,
        length: int,
        finish: Callable[[int], Hypothesis],
    ) -> list[int]:
        """Take one step.

        Args:
            candidates: the best continuations.
            ends: bool [K], whether each is complete.
            length: generated tokens of the candidates.
            finish: makes the hypothesis of a candidate by its index.

        Returns:
            [num_beams]: indices of the candidates that go on.
        """
        beams = self._params.num_beams
        if not self._best and not ends.any():  # nearly every step of nearly every search
            if candidates.ranked:
                self.scores = candidates.scores[:beams]
                return list(range(beams))
            survivors = _best(candidates.scores, beams)
            self.scores = candidates.scores[survivors]
            return survivors
        running = candidates.scores + ends.astype(np.float32) * _LAST
        survivors = _best(running, beams)
        self._keep_finished(candidates.scores, ends, length, finish)
        self.scores = running[survivors]
        is_full = len(self._best) == beams
        stops_early = is_full and self._params.early_stopping is True
        self.done = stops_early or bool(ends.all()) or (is_full and not self._may_improve(length))
        return survivors

    def _keep_finished(
        self, scores: np.ndarray, ends: np.ndarray, length: int, finish: Callable[[int], Hypothesis]
    ) -> None:
        """Merge what ended now, among the best candidates only, with the best so far.

        Where an answer has a form there may be fewer answers than beams, and what fills the places of the
        others is none.
        """
        beams, kept = self._params.num_beams, len(self._best)
        ended = np.flatnonzero(
            ends[:beams] & (has_chance(scores[:beams]) if self._params.is_constrained else True)
        )
        merged = np.concatenate([self._best_scores, self._normalised(scores[ended], length)])
        order = _best(merged, beams)
        self._best = [self._best[i] if i < kept else finish(int(ended[i - kept])) for i in order]
        self._best_scores = merged[order]

    def _may_improve(self, length: int) -> bool:
        """Whether a running beam could still beat the worst of all finished answers."""
        params = self._params
        horizon = length
        if params.early_stopping == "never" and params.length_penalty > 0.0:
            horizon = params.max_new_tokens
        return bool(self._normalised(self.scores[:1], horizon)[0] > self._best_scores.min())

    def _normalised(self, scores: np.ndarray, length: int) -> np.ndarray:
        """Accumulated `scores` in relation to the length; what float32 cannot hold is at its end."""
        penalty = np.float32(np.clip(length**self._params.length_penalty, _FLOAT32.tiny, _FLOAT32.max))
        with np.errstate(over="ignore"):
            return np.clip(scores / penalty, _FLOAT32.min, _FLOAT32.max)

    def results(self) -> list[Hypothesis]:
        """The answers to return, best first."""
        return self._best[: self._params.num_choices]


def has_chance(scores: np.ndarray) -> np.ndarray:
    """bool: which of `scores` are of beams that may become answers; the others fill places."""
    return (scores > _LAST / 2) & (scores < np.inf)


def _best(scores: np.ndarray, count: int) -> list[int]:
    """Indices of the `count` largest scores, largest first."""
    best: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
    return best
