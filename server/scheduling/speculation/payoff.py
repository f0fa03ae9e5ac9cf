"""What guessing costs and brings: running estimates, learnt from the steps themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence as Seq

import numpy as np

_WINDOW = 9
"""Steps whose median is believed: some of them are disturbed by other work."""

_SAMPLES = 3
"""Steps of a size before anything is believed of it."""

_EPOCH_STEPS = 2048
"""Of this many steps some are measured without drafts, and sizes that did not occur are forgotten."""

LEAST_GAIN = 0.05
"""What drafts must bring at least, in steps: below that, it may as well be an error of the estimate."""

_PRIOR_WEIGHT = 2.0
"""Tokens that an estimate counts for before there are any."""


class StepCost:
    """Seconds that a step takes, by how many tokens it computes.

    The sizes are put together by powers of two; between their medians the cost is interpolated,
    beyond them it is taken to stay as it is: what was not tried lately seems cheap, and is tried.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[float, int]]] = {}
        self._medians: dict[int, tuple[float, int]] = {}
        self._tokens: list[int] = [1]
        self._seconds: list[float] = [0.0]
        self._steps = 0
        self._seen: dict[int, int] = {}

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` tokens took `seconds`."""
        size = (tokens - 1).bit_length()
        samples = self._samples.setdefault(size, deque(maxlen=_WINDOW))
        samples.append((seconds, tokens))
        seen = self._seen[size] = self._seen.get(size, 0) + 1
        if len(samples) >= _SAMPLES and (seen <= _WINDOW or seen % _WINDOW == 0):
            self._medians[size] = sorted(samples)[len(samples) // 2]
            self._draw()
        self._steps += 1
        if self._steps % _EPOCH_STEPS == 0:
            for old in self._samples.keys() - self._seen.keys():
                del self._samples[old]
                self._medians.pop(old, None)
            self._seen.clear()
            self._draw()

    def _draw(self) -> None:
        points = [self._medians[size] for size in sorted(self._medians)] or [(0.0, 1)]
        self._seconds = [seconds for seconds, _ in points]
        self._tokens = [tokens for _, tokens in points]

    def is_stale(self, tokens: int) -> bool:
        """Whether steps of that size are to be measured (again)."""
        return self._seen.get((tokens - 1).bit_length(), 0) < _SAMPLES

    def seconds(self, tokens: int) -> float:
        """Estimate for a step of `tokens` tokens; 0 before the first observation."""
        xs, ys = self._tokens, self._seconds
        above = bisect_left(xs, tokens)
        if above == 0 or above == len(xs):
            return ys[min(above, len(ys) - 1)]
        share = (tokens - xs[above - 1]) / (xs[above] - xs[above - 1])
        return ys[above - 1] + share * (ys[above] - ys[above - 1])

    def curve(self, first: int, last: int) -> np.ndarray:
        """Estimates for steps of `first` to `last` tokens, both included."""
        return np.asarray(np.interp(np.arange(first, last + 1), self._tokens, self._seconds))


class Acceptance:
    """Share of drafted tokens that turn out right, by the size of the n-gram that was found.

    Args:
        max_size: tokens of the longest n-gram.
        memory: weight of the past, against 1 for the newest draft.
        prior: believed before there are drafts of one's own; None: one in two.

    Attributes:
        rates: by size, the chance that a drafted token is right, given that those before it are.
    """

    def __init__(self, max_size: int, memory: float, prior: Acceptance | None = None) -> None:
        self._memory = memory
        self._right = [0.0] * (max_size + 1)
        self._tried = [0.0] * (max_size + 1)
        self._prior = prior
        self.rates = [self._rate(size) for size in range(max_size + 1)]

    def observe(self, size: int, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the first `accepted` were right; what follows a wrong one tells nothing."""
        self._right[size] = self._right[size] * self._memory + accepted
        self._tried[size] = self._tried[size] * self._memory + min(accepted + 1, drafted)
        self.rates[size] = self._rate(size)

    def _rate(self, size: int) -> float:
        prior = 0.5 if self._prior is None else self._prior.rates[size]
        return (self._right[size] + _PRIOR_WEIGHT * prior) / (self._tried[size] + _PRIOR_WEIGHT)


def worthwhile(
    rates: Seq[float], lengths: Seq[int], rows: int, tokens: int, budget: int, cost: StepCost
) -> list[int]:
    """How much of each draft to compute, so that the step gains most; nothing, if that is next to nothing.

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
    value = cost.seconds(rows) / rows
    expected = sum(
        rate * (1 - rate**length) / (1 - rate) for rate, length in zip(rates, lengths, strict=True)
    )
    if expected * value < LEAST_GAIN * cost.seconds(tokens):
        return [0] * len(rates)  # not even if they cost nothing
    chances = [rate ** np.arange(1, length + 1) for rate, length in zip(rates, lengths, strict=True)]
    ordered = np.sort(np.concatenate(chances))[::-1][:budget]
    if not ordered.size:
        return [0] * len(rates)
    plain, *more = cost.curve(tokens, tokens + ordered.size)
    gain = np.cumsum(ordered) * value - (np.array(more) - plain)
    best = int(gain.argmax())
    if gain[best] < LEAST_GAIN * plain:
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
