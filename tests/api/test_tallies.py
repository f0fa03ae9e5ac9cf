"""Series of plain numbers, compared with prometheus_client's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from server.api.tallies import CounterTally, HistogramTally

BOUNDS = (0.01, 0.5, 1.0, 10.0)


def lines(registry: CollectorRegistry) -> list[str]:
    """What a scrape gets, without the times of creation, which only prometheus_client's own have."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_a_histogram_is_exposed_as_ever() -> None:
    plain, own = CollectorRegistry(), CollectorRegistry()
    expected = Histogram("vllm:gap_seconds", "Gaps.", ["model_name"], registry=plain, buckets=BOUNDS)
    tally = HistogramTally(own, "vllm:gap_seconds", "Gaps.", "m", BOUNDS)
    for value in (0.0, 0.01, 0.010001, 0.5, 0.75, 1.0, 9.5, 10.0, 11.0, 1000.0):
        expected.labels("m").observe(value)
        tally.observe(value)
        assert lines(own) == lines(plain)


def test_a_counter_is_exposed_as_ever() -> None:
    plain, own = CollectorRegistry(), CollectorRegistry()
    expected = Counter("vllm:generation_tokens", "Tokens.", ["model_name"], registry=plain).labels("m")
    tally = CounterTally(own, "vllm:generation_tokens", "Tokens.", "m")
    for count in (1, 7, 0, 250):
        expected.inc(count)
        tally.value += count
        assert lines(own) == lines(plain)
