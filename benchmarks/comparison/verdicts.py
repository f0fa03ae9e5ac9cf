"""What the figures say, in words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.comparison.plan import Outcome
from benchmarks.loadgen.repeats import Result, Spread

DESCRIPTIONS = {
    "equal": "equal lengths, all sent at once",
    "exponential": "answers of very different lengths (exponential, mean 64, cap 256)",
    "sharegpt": "chats (ShareGPT-like lengths, a quarter of them)",
    "shared-prefix": "a shared system prompt of 512 tokens",
    "beams": "half of the requests searching 4 beams",
}
UNDECIDED = 1.05
"""Ratios closer to 1 than this are not worth a word."""


def verdict(outcome: Outcome, traffic: str) -> str:
    """Which endpoint is better under `traffic` at saturation, and by how much; HTML."""
    results = sorted(outcome.saturated[traffic], key=lambda result: -result.median("tokens_per_second"))
    best, *others = results
    title = f"<b>{escape(DESCRIPTIONS.get(traffic, traffic).capitalize())}:</b> "
    if not others:
        return f"{title}{escape(best.endpoint)} generates {best.median('tokens_per_second'):,.0f} tokens/s."
    return title + "; ".join(_against(best, other, outcome) for other in others) + "."


def _against(best: Result, other: Result, outcome: Outcome) -> str:
    ratio = _ratio(best, other, "tokens_per_second")
    winner, loser = escape(best.endpoint), escape(other.endpoint)
    if ratio < UNDECIDED or _overlap(best, other, "tokens_per_second"):
        return f"no difference between {winner} and {loser} beyond the spread of the runs ({ratio:.2f}×)"
    parts = [f"{winner} generates {ratio:.1f}× the tokens per second of {loser}"]
    goodput, lost = best.median("goodput_requests"), other.median("goodput_requests")
    if lost == 0 < goodput:
        parts.append(f"{loser} keeps the objective for no request")
    elif lost:
        parts.append(f"{goodput / lost:.1f}× its goodput")
    slower = _ratio(other, best, "latency.p95")
    if slower:
        relation = f"{1 / slower:.2f}× its" if slower >= 1 else f"but {1 / slower:.1f}× its"
        parts.append(f"at {relation} 95th percentile of latency")
    return ", ".join(parts)


def overall(outcome: Outcome) -> list[str]:
    """All verdicts, and what the sweep of rates shows; HTML."""
    lines = [verdict(outcome, traffic) for traffic in outcome.saturated]
    if outcome.sweep:
        lines.append(_capacity(outcome))
    return lines


def _capacity(outcome: Outcome, share: float = 0.95) -> str:
    """Up to which rate each endpoint keeps the objective for nearly all requests."""
    told = []
    for i, endpoint in enumerate(outcome.endpoints):
        kept = [
            rate for rate, results in outcome.sweep.items() if results[i].median("goodput_share") >= share
        ]
        reach = f"up to {max(kept):.1f} requests/s" if kept else "at none"
        told.append(f"{escape(endpoint.name)} {reach}")
    rates = ", ".join(f"{rate:.1f}" for rate in outcome.sweep)
    return (
        f"<b>Of the rates that were tried ({rates} requests/s),</b> the objective is kept for "
        f"{share:.0%} of requests by {'; '.join(told)}."
    )


def _ratio(numerator: Result, denominator: Result, figure: str) -> float:
    below = denominator.median(figure)
    return numerator.median(figure) / below if below else 0.0


def _overlap(one: Result, other: Result, figure: str) -> bool:
    """Whether the ranges of the runs meet, so that the difference may be chance."""
    a, b = one.spread(figure), other.spread(figure)
    return a is None or b is None or _meet(a, b)


def _meet(a: Spread, b: Spread) -> bool:
    return a.low <= b.high and b.low <= a.high


def best_of(results: Sequence[Result], figure: str, *, lowest: bool) -> int | None:
    """Which result is best in a figure; None where none has it."""
    values = [(result.median(figure), i) for i, result in enumerate(results) if result.spread(figure)]
    if not values:
        return None
    return min(values)[1] if lowest else max(values, key=lambda pair: pair[0])[1]
