"""What guessing costs and brings: running estimates, learnt from the steps themselves."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence as Seq

import numpy as np

_WINDOW = 9
"""Most recent steps of a size that are kept. The estimate is their lower third: interference from other work
only ever adds time."""

_SAMPLES = 3
"""Steps of a size before anything is believed of it."""

_EPOCH_STEPS = 1024
"""Of this many steps some are measured without drafts, and sizes that did not occur are forgotten."""

LEAST_GAIN = 0.05
"""What drafts must bring at least, in steps: below that, it may as well be an error of the estimate."""

_PRIOR_WEIGHT = 2.0
"""Default weight of a prior, in tokens."""


class StepCost:
    """Seconds that a step takes, by how many tokens it computes.

    The sizes are put together by powers of two; between what is believed of them the cost is interpolated,
    beyond them it is taken to stay as it is: what was not tried lately seems cheap, and is tried.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[float, int]]] = {}
        self._believed: dict[int, tuple[float, int]] = {}
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
            self._believed[size] = sorted(samples)[(len(samples) - 1) // 3]
            self._draw()
        self._steps += 1
        if self._steps % _EPOCH_STEPS == 0:
            self.forget()

    def forget(self) -> None:
        """Forget the sizes that did not occur since the last time."""
        for old in self._samples.keys() - self._seen.keys():
            del self._samples[old]
            self._believed.pop(old, None)
        self._seen.clear()
        self._draw()

    def _draw(self) -> None:
        points = [self._believed[size] for size in sorted(self._believed)] or [(0.0, 1)]
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

    def knows(self, tokens: int) -> bool:
        """Whether there is an estimate for `tokens` or for a smaller size."""
        return bool(self._believed) and tokens >= self._tokens[0]

    def curve(self, first: int, last: int) -> np.ndarray:
        """Estimates for steps of `first` to `last` tokens, both included."""
        return np.asarray(np.interp(np.arange(first, last + 1), self._tokens, self._seconds))


class DraftCost:
    """Seconds that a model takes for a draft, by how many sequences it drafts for and how much for each.

    The first token of a draft costs more than the others, because tokens accepted since the last draft are
    computed with it. So each draft length is measured separately, with linear interpolation in between.
    Estimates for untested sizes are deliberately low, so that they get tried: longer drafts and more
    sequences cost as much as the largest measured, shorter drafts their share, fewer sequences nothing.
    """

    def __init__(self) -> None:
        self._by_count: dict[int, StepCost] = {}
        self._steps = 0

    def observe(self, rows: int, count: int, seconds: float) -> None:
        """`count` tokens of each of `rows` sequences took `seconds`."""
        self._by_count.setdefault(count, StepCost()).observe(rows, seconds)

    def pass_step(self) -> None:
        """Count a step, with or without drafts; measurements that have not recurred for long are dropped."""
        self._steps += 1
        if self._steps % _EPOCH_STEPS == 0:
            for cost in self._by_count.values():
                cost.forget()

    def seconds(self, rows: int, count: int) -> float:
        """Estimate for `count` tokens of each of `rows` sequences; 0 before the first observation."""
        return self.curve(rows, count)[count]

    def curve(self, rows: int, most: int) -> list[float]:
        """The same for 0 to `most` tokens."""
        known = {
            tried: cost.seconds(rows) for tried, cost in sorted(self._by_count.items()) if cost.knows(rows)
        }
        found: list[float] = np.interp(range(most + 1), [0, *known], [0.0, *known.values()]).tolist()
        return found


class Acceptance:
    """Share of drafted tokens that turn out right, by the size of the n-gram that was found.

    Args:
        max_size: tokens of the longest n-gram.
        memory: weight of the past, against 1 for the newest draft.
        prior: rate before any draft; a number, or the estimate to take it from.
        prior_weight: of the prior, in tokens.

    Attributes:
        rates: by size, the chance that a drafted token is right, given that those before it are.
    """

    def __init__(
        self,
        max_size: int,
        memory: float,
        prior: Acceptance | float = 0.5,
        prior_weight: float = _PRIOR_WEIGHT,
    ) -> None:
        self._memory = memory
        self._prior_weight = prior_weight
        self._right = [0.0] * (max_size + 1)
        self._tried = [0.0] * (max_size + 1)
        self._prior = prior
        self.rates = [self._rate(size) for size in range(max_size + 1)]

    def observe(self, size: int, drafted: int, accepted: int) -> None:
        """Of `drafted` tokens the first `accepted` were right; what follows a wrong one tells nothing."""
        self._right[size] = self._right[size] * self._memory + accepted
        self._tried[size] = self._tried[size] * self._memory + min(accepted + 1, drafted)
        self.rates[size] = self._rate(size)

    def fade(self, size: int, memory: float) -> None:
        """Decay past observations by the factor `memory`, so that the rate returns to the prior."""
        self._right[size] *= memory
        self._tried[size] *= memory
        self.rates[size] = self._rate(size)

    def _rate(self, size: int) -> float:
        prior, weight = self._prior, self._prior_weight
        believed = prior.rates[size] if isinstance(prior, Acceptance) else prior
        return (self._right[size] + weight * believed) / (self._tried[size] + weight)


def worthwhile(rates: Seq[float], lengths: Seq[int], rows: int, budget: int, cost: StepCost) -> list[int]:
    """How much of each draft to compute, so that the step gains most; nothing, if that is next to nothing.

    A token more is worth the time that one takes in a step of plain decoding. The j-th token of a
    draft is gained with probability rateʲ; the likeliest of all drafts go in first, as many as bring
    more time than they take.

    Args:
        rates: chance of each draft's tokens.
        lengths: tokens of each draft.
        rows: sequences that decode in the step.
        budget: most drafted tokens.
        cost: of steps.

    Returns:
        Tokens to keep of each draft.
    """
    plain = cost.seconds(rows)
    value = plain / rows
    expected = sum(
        rate * (1 - rate**length) / (1 - rate) for rate, length in zip(rates, lengths, strict=True)
    )
    if expected * value < LEAST_GAIN * plain:
        return [0] * len(rates)  # not even if they cost nothing
    chances = [rate ** np.arange(1, length + 1) for rate, length in zip(rates, lengths, strict=True)]
    ordered = np.sort(np.concatenate(chances))[::-1][:budget]
    if not ordered.size:
        return [0] * len(rates)
    gain = np.cumsum(ordered) * value - (cost.curve(rows + 1, rows + ordered.size) - plain)
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
