"""What guessing costs and brings: running estimates, learnt from the steps themselves."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq

import numpy as np

_WINDOW = 9
"""Steps whose median is believed: some of them are disturbed by other work."""

_EPOCH_STEPS, _EPOCH_SAMPLES = 256, 3
"""In each so many steps, so many of each size are measured without drafts."""

_PRIOR_WEIGHT = 2.0
"""Tokens that an estimate counts for before there are any."""


class StepCost:
    """Seconds that a step takes, by how many tokens it computes.

    The sizes are put together by powers of two; between their medians the cost is interpolated,
    beyond them it is taken to stay as it is: what was never tried seems cheap, and is tried.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[float, int]]] = {}
        self._medians: dict[int, tuple[float, int]] = {}
        self._tokens = np.zeros(1)
        self._seconds = np.zeros(1)
        self._steps = 0
        self._seen: dict[int, int] = {}

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` tokens took `seconds`."""
        self._steps += 1
        if self._steps % _EPOCH_STEPS == 0:
            self._seen.clear()
        size = (tokens - 1).bit_length()
        self._seen[size] = self._seen.get(size, 0) + 1
        samples = self._samples.setdefault(size, deque(maxlen=_WINDOW))
        samples.append((seconds, tokens))
        self._medians[size] = sorted(samples)[len(samples) // 2]
        points = [self._medians[size] for size in sorted(self._medians)]
        self._seconds = np.array([point[0] for point in points])
        self._tokens = np.array([point[1] for point in points])

    def is_stale(self, tokens: int) -> bool:
        """Whether steps of that size are to be measured (again)."""
        return self._seen.get((tokens - 1).bit_length(), 0) < _EPOCH_SAMPLES

    def seconds(self, tokens: np.ndarray | int) -> np.ndarray:
        """Estimates for steps of `tokens` tokens; 0 before the first observation."""
        return np.asarray(np.interp(tokens, self._tokens, self._seconds))


class Acceptance:
    """Share of drafted tokens that turn out right, by the size of the n-gram that was found.

    Args:
        max_size: tokens of the longest n-gram.
        memory: weight of the past, against 1 for the newest draft.
        prior: believed before there are drafts of one's own; None: one in two.

    Attributes:
        best: the rate of the best size, as of the last observation.
    """

    def __init__(self, max_size: int, memory: float, prior: Acceptance | None = None) -> None:
        self._memory = memory
        self._prior = prior
        self._right = [0.0] * (max_size + 1)
        self._tried = [0.0] * (max_size + 1)
        self.best = self._best()

    def observe(self, size: int, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the first `accepted` were right; what follows a wrong one tells nothing."""
        self._right[size] = self._right[size] * self._memory + accepted
        self._tried[size] = self._tried[size] * self._memory + min(accepted + 1, drafted)
        self.best = self._best()

    def rate(self, size: int) -> float:
        """Chance that a drafted token is right, given that those before it are."""
        prior = 0.5 if self._prior is None else self._prior.rate(size)
        return (self._right[size] + _PRIOR_WEIGHT * prior) / (self._tried[size] + _PRIOR_WEIGHT)

    def _best(self) -> float:
        return max(self.rate(size) for size in range(1, len(self._right)))


def worthwhile(
    rates: Seq[float], lengths: Seq[int], rows: int, tokens: int, budget: int, cost: StepCost
) -> list[int]:
    """How much of each draft to compute, so that the step gains most.

    A token more is worth the time that one takes in a step of plain decoding. The j-th token of a
    draft is gained with probability rateʲ; the likeliest of all drafts go in first, as many as bring
    more time than they take.

    Args:
        rates: chance of each draft's tokens.
        lengths: tokens of each draft.
        rows: sequences that decode in the step.
        tokens: all that the step computes anyway.
        budget: most drafted tokens.
        cost: of steps.

    Returns:
        Tokens to keep of each draft.
    """
    chances = [rate ** np.arange(1, length + 1) for rate, length in zip(rates, lengths, strict=True)]
    ordered = np.sort(np.concatenate(chances))[::-1][:budget]
    if not ordered.size:
        return [0] * len(rates)
    value = cost.seconds(rows) / rows
    spent = cost.seconds(tokens + np.arange(1, ordered.size + 1)) - cost.seconds(tokens)
    gain = np.cumsum(ordered) * value - spent
    best = int(gain.argmax())
    if gain[best] < 0.0:
        return [0] * len(rates)
    kept = [int(np.count_nonzero(chance >= ordered[best])) for chance in chances]
    return kept if sum(kept) <= budget else _cut(kept, budget)


def _cut(lengths: list[int], budget: int) -> list[int]:
    """The first of `lengths` that fit in `budget` together: equal chances were counted alike."""
    kept = []
    for length in lengths:
        kept.append(min(length, budget))
        budget -= kept[-1]
    return kept
