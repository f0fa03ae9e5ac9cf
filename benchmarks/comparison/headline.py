"""What a reader sees first: three numbers, and one chart over all traffics."""

from __future__ import annotations

from html import escape

from benchmarks.bars import Bar, Group, bar_chart
from benchmarks.charts import number
from benchmarks.comparison.outcome import SWEPT, Outcome
from benchmarks.comparison.verdicts import KEPT_SHARE, capacity, paired, with_interval
from benchmarks.loadgen.intervals import Interval, differs, geometric_mean, interval, ratio
from benchmarks.loadgen.repeats import Result
from benchmarks.page import COLOURS, Card


def cards(outcome: Outcome) -> list[Card]:
    """Throughput, capacity and latency; nothing before the first traffic was measured."""
    if not outcome.traffics:
        return []
    return [_throughput(outcome), _capacity(outcome), _latency(outcome)]


def over_traffics(outcome: Outcome) -> str:
    """Output tokens a second of every endpoint under every traffic."""
    groups = []
    for traffic, results in outcome.traffics.items():
        bars = []
        for i, result in enumerate(results):
            found = result.interval("tokens_per_second")
            value, low, high = (0.0, 0.0, 0.0) if found is None else (found.mean, found.low, found.high)
            known = found is not None and found.known
            text = with_interval(found)
            bars.append(Bar(result.endpoint, i % COLOURS, value, (low, high) if known else None, text))
        groups.append(Group(traffic, bars))
    return bar_chart("Output tokens per second", groups)


def _mean_over_traffics(outcome: Outcome, endpoint: int) -> list[float]:
    """For each seed the geometric mean of tokens a second over all traffics; empty where one has none."""
    by_traffic = [results[endpoint].values("tokens_per_second") for results in outcome.traffics.values()]
    if min(map(min, by_traffic)) <= 0:
        return []
    return [geometric_mean(values) for values in zip(*by_traffic, strict=True)]


def _throughput(outcome: Outcome) -> Card:
    means = [_mean_over_traffics(outcome, i) for i in range(len(outcome.endpoints))]
    found = [interval(values) if values else None for values in means]
    lines = _lines(outcome, [with_interval(one) for one in found])
    count = len(outcome.traffics)
    over = (
        f"under “{escape(next(iter(outcome.traffics)))}”"
        if count == 1
        else f"on average over {count} traffics"
    )
    ranked = sorted((i for i, one in enumerate(found) if one), key=lambda i: -_mean(found[i]))
    if len(ranked) < 2:
        value = number(_mean(found[ranked[0]])) if ranked else "–"
        return Card(value, f"output tokens per second, {over}", lines)
    first, second = ranked[:2]
    names = [escape(outcome.endpoints[i].name) for i in (first, second)]
    against = ratio(means[first], means[second])
    if against is None or not differs(against):
        return Card(
            "none", f"is the difference in tokens per second between {names[0]} and {names[1]}, {over}", lines
        )
    return Card(
        f"{against.mean:.{1 if against.mean >= 2 else 2}f}×",
        f"as many output tokens per second from {names[0]} as from {names[1]}, {over} "
        f"(95 % interval {against.low:.2f} to {against.high:.2f})",
        lines,
    )


def _capacity(outcome: Outcome) -> Card:
    """The rate that is served within the objective; without a sweep, the goodput under the first traffic."""
    if outcome.sweep:
        reached = capacity(outcome)
        best = max((rate for rate in reached if rate is not None), default=None)
        kept = [i for i, rate in enumerate(reached) if rate is not None and rate == best]
        names = " and ".join(escape(outcome.endpoints[i].name) for i in kept)
        lines = _lines(
            outcome, ["none" if rate is None else f"{number(rate)} requests/s" for rate in reached]
        )
        what = (
            "requests per second, the highest rate tried at which "
            f"{KEPT_SHARE:.0%} of requests keep the objective, "
            f"with {names}"
        )
        return Card(
            "none" if best is None else number(best),
            what if kept else "of the rates tried is served within the objective",
            lines,
        )
    traffic, results = _swept_or_first(outcome)
    found = [result.interval("goodput_requests") for result in results]
    best_value = max(map(_mean, found))
    return Card(
        number(best_value),
        f"requests per second within the objective, at best, under “{escape(traffic)}”",
        _lines(outcome, [with_interval(one) for one in found]),
    )


def _latency(outcome: Outcome) -> Card:
    traffic, results = _swept_or_first(outcome)
    found = [result.interval("latency.p95") for result in results]
    lines = _lines(outcome, [f"{with_interval(one)} s" if one else "–" for one in found])
    ranked = sorted((i for i, one in enumerate(found) if one), key=lambda i: _mean(found[i]))
    if not ranked:
        return Card("–", "no request was answered", lines)
    best = ranked[0]
    name = escape(outcome.endpoints[best].name)
    what = f"95th percentile of latency of {name} under “{escape(traffic)}”, at saturation"
    if len(ranked) > 1 and not differs(paired(results[best], results[ranked[1]], "latency.p95")):
        what += f"; no difference to {escape(outcome.endpoints[ranked[1]].name)}"
    return Card(f"{number(_mean(found[best]))} s", what, lines)


def _swept_or_first(outcome: Outcome) -> tuple[str, list[Result]]:
    traffics = outcome.traffics
    name = SWEPT if SWEPT in traffics else next(iter(traffics))
    return name, traffics[name]


def _mean(found: Interval | None) -> float:
    return 0.0 if found is None else found.mean


def _lines(outcome: Outcome, texts: list[str]) -> list[tuple[str, int, str]]:
    return [
        (endpoint.name, i % COLOURS, text)
        for i, (endpoint, text) in enumerate(zip(outcome.endpoints, texts, strict=True))
    ]
