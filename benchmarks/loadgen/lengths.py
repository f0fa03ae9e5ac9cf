"""Distributions of prompt and answer lengths, in tokens.

A distribution is written as ``name:number:number…``:

==============================  ===============================================================
``fixed:N``                     always N
``uniform:LOW:HIGH``            each length from LOW to HIGH alike
``exponential:MEAN``            many short, few long ones, without bound
``exponential:MEAN:CAP``        the same, those above CAP cut to CAP
``sharegpt-prompt``             prompts of chats with an assistant
``sharegpt-answer``             answers in chats with an assistant
``alpaca-prompt``               single instructions
``alpaca-answer``               answers to single instructions
==============================  ===============================================================

The last four may end in ``:SCALE:CAP`` (``sharegpt-answer:0.25:512``) to suit a small model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.loadgen.written import split

Lengths = Callable[[np.random.Generator, int], np.ndarray]
"""(random numbers, count) → as many lengths, integers of at least 1."""

TABLES = {
    name: [int(length) for length in lengths.split()]
    for name, lengths in {
        "sharegpt-prompt": "4 6 9 12 15 18 22 26 31 37 45 56 71 92 123 168 235 342 523 720 1400",
        "sharegpt-answer": "4 15 31 52 78 109 144 182 218 254 289 325 362 402 443 490 542 604 686 824 1460",
        "alpaca-prompt": "6 8 9 10 11 11 12 13 14 14 15 16 17 19 20 22 24 28 34 45 86",
        "alpaca-answer": "2 4 6 9 13 16 20 24 29 34 40 45 51 58 66 75 86 99 118 151 461",
    }.items()
}
"""Lengths at the 0th, 5th, …, 100th percentile; between them they are interpolated.

Smoothed to the shapes and means that Kwon et al. report for the two datasets (PagedAttention, SOSP
2023, figure 11: ShareGPT 161 in and 338 out, Alpaca 19 in and 58 out); not samples of the data.
"""


class LengthError(ValueError):
    """A distribution that is not written as one."""


def parse_lengths(text: str) -> Lengths:
    """The distribution that `text` names.

    Raises:
        LengthError: it names none.
    """
    name, numbers = split(text, LengthError)
    match name, numbers:
        case "fixed", [value]:
            return lambda random, count: np.full(count, round(value))
        case "uniform", [low, high] if low <= high:
            return lambda random, count: random.integers(round(low), round(high), count, endpoint=True)
        case "exponential", [mean, *cap] if len(cap) <= 1:
            return _exponential(mean, cap[0] if cap else float("inf"))
        case table, [] | [_] | [_, _] if table in TABLES:
            scale, limit = [*numbers, *(1.0, float("inf"))[len(numbers) :]]
            return _table(TABLES[table], scale, limit)
    forms = "fixed:N, uniform:LOW:HIGH, exponential:MEAN[:CAP], " + ", ".join(TABLES)
    raise LengthError(f"{text!r} is no distribution of lengths; they are {forms}")


def _exponential(mean: float, cap: float) -> Lengths:
    def draw(random: np.random.Generator, count: int) -> np.ndarray:
        return np.clip(np.ceil(random.exponential(mean, count)), 1, cap).astype(np.int64)

    return draw


def _table(table: list[int], scale: float, cap: float) -> Lengths:
    percentiles = np.linspace(0, 1, len(table))

    def draw(random: np.random.Generator, count: int) -> np.ndarray:
        lengths = np.interp(random.random(count), percentiles, table) * scale
        return np.clip(np.rint(lengths), 1, cap).astype(np.int64)

    return draw
