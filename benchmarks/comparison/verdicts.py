"""What the figures say, in words. A difference whose 95 % interval contains none is called none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.charts import number
from benchmarks.comparison.outcome import Outcome
from benchmarks.loadgen.intervals import Interval, differs, ratio
from benchmarks.loadgen.repeats import Result

DESCRIPTIONS = {
    "equal": "equal lengths, all sent at once",
    "exponential": "answers of very different lengths (exponential, mean 64, cap 256)",
    "sharegpt": "chats (ShareGPT-like lengths, a quarter of them)",
    "shared-prefix": "a shared system prompt of 512 tokens",
    "beams": "half of the requests searching 4 beams",
}
KEPT_SHARE = 0.95
"""Share of requests that must keep the objective at a rate, for the rate to count as served."""


def described(traffic: str) -> str:
    """The traffic in words, for the beginning of a sentence."""
    text = DESCRIPTIONS.get(traffic)
    return traffic if text is None else text[0].upper() + text[1:]


def verdict(outcome: Outcome, traffic: str) -> str:
    """Which endpoint is better under `traffic`, and by how much; HTML."""
    results = sorted(outcome.traffics[traffic], key=lambda result: -result.mean("tokens_per_second"))
    best, *others = results
    title = f"<b>{escape(described(traffic))}:</b> "
    if not others:
        return f"{title}{escape(best.endpoint)} generates {best.mean('tokens_per_second'):,.0f} tokens/s."
    return title + "; ".join(_against(best, other) for other in others) + "."


def _against(best: Result, other: Result) -> str:
    winner, loser = escape(best.endpoint), escape(other.endpoint)
    found = paired(best, other, "tokens_per_second")
    if found is None:
        return f"there is no ratio to {loser}, which generated nothing in at least one run"
    if not differs(found):
        return f"no difference between {winner} and {loser} ({between(found)})"
    parts = [f"{winner} generates {between(found)} the tokens per second of {loser}"]
    goodput, lost = best.mean("goodput_requests"), other.mean("goodput_requests")
    if lost == 0 < goodput:
        parts.append(f"{loser} keeps the objective for no request")
    elif differs(good := paired(best, other, "goodput_requests")) and good is not None:
        parts.append(f"{between(good)} its goodput")
    latency = paired(best, other, "latency.p95")
    if latency is None or not differs(latency):
        parts.append("with no difference in the 95th percentile of latency")
    else:
        relation = "at" if latency.mean < 1 else "but at"
        parts.append(f"{relation} {between(latency)} its 95th percentile of latency")
    return ", ".join(parts)


def paired(one: Result, other: Result, figure: str) -> Interval | None:
    """How many times the `figure` of `other` that of `one` is, run by run; None where it is missing or 0."""
    a, b = one.values(figure), other.values(figure)
    return ratio(a, b) if len(a) == len(b) else None


def between(found: Interval) -> str:
    """A ratio with its interval: ``7.2× (6.9 to 7.5)``."""
    digits = 1 if found.mean >= 2 else 2
    if not found.known:
        return f"{found.mean:.{digits}f}× (one run: no interval)"
    return f"{found.mean:.{digits}f}× ({found.low:.{digits}f} to {found.high:.{digits}f})"


def with_interval(found: Interval | None) -> str:
    """A figure with half of its interval, rounded alike: ``1,208 ±31``, ``1.97 ±0.24``."""
    if found is None:
        return "–"
    if not found.known or found.mean == 0:
        return number(found.mean)
    decimals = max(3 - math.ceil(math.log10(abs(found.mean)) + 1e-9), 0)  # three digits of the mean
    return f"{found.mean:,.{decimals}f} ±{found.half:,.{decimals}f}"


def overall(outcome: Outcome) -> list[str]:
    """All verdicts, and what the sweep of rates shows; HTML."""
    lines = [verdict(outcome, traffic) for traffic in outcome.traffics]
    if outcome.sweep:
        lines.append(_capacity(outcome))
    return lines


def capacity(outcome: Outcome) -> list[float | None]:
    """For each endpoint the greatest rate up to which it keeps the objective at every rate that was tried."""
    reached: list[float | None] = []
    for i in range(len(outcome.endpoints)):
        last = None
        for rate in sorted(outcome.sweep):
            if outcome.sweep[rate][i].mean("goodput_share") < KEPT_SHARE:
                break
            last = rate
        reached.append(last)
    return reached


def _capacity(outcome: Outcome) -> str:
    told = [
        f"{escape(endpoint.name)} {'at none' if rate is None else f'up to {number(rate)} requests/s'}"
        for endpoint, rate in zip(outcome.endpoints, capacity(outcome), strict=True)
    ]
    rates = ", ".join(number(rate) for rate in sorted(outcome.sweep))
    return (
        f"<b>Of the rates that were tried ({rates} requests/s),</b> the objective is kept for "
        f"{KEPT_SHARE:.0%} of requests by {'; '.join(told)}."
    )


def best_of(results: Sequence[Result], figure: str, *, lowest: bool) -> int | None:
    """Which result is best in a figure; None where it differs from no other, or none has it."""
    values = [(result.mean(figure), i) for i, result in enumerate(results) if result.values(figure)]
    if len(values) < 2:
        return None
    winner = min(values)[1] if lowest else max(values)[1]
    others = [i for _, i in values if i != winner]
    if any(differs(paired(results[winner], results[i], figure)) for i in others):
        return winner
    return None
