"""Series that change at every token: plain numbers of the event loop, made into metrics at a scrape.

prometheus_client takes a lock for each part of a series and looks at the buckets one by one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString


class CounterTally:
    """A counter.

    Args:
        registry: where it is registered.
        name: without ``_total``.
        text: what it counts.
        model: value of the label ``model_name``.
    """

    def __init__(self, registry: CollectorRegistry, name: str, text: str, model: str) -> None:
        self.value = 0
        self._name, self._text, self._model = name, text, model
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """At a scrape."""
        family = CounterMetricFamily(self._name, self._text, labels=["model_name"])
        family.add_metric([self._model], self.value)
        yield family


class HistogramTally:
    """A histogram.

    Args:
        registry: where it is registered.
        name: of the series.
        text: what is observed.
        model: value of the label ``model_name``.
        bounds: upper ends of the buckets, rising; infinity is added.
    """

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, model: str, bounds: Sequence[float]
    ) -> None:
        self._name, self._text, self._model = name, text, model
        self._bounds = (*bounds, float("inf"))
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count `value`."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        """At a scrape."""
        total, buckets = 0, []
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            buckets.append((floatToGoString(bound), total))  # type: ignore[no-untyped-call]
        family = HistogramMetricFamily(self._name, self._text, labels=["model_name"])
        family.add_metric([self._model], buckets, self._sum)
        yield family
