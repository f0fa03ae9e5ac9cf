"""What a static-batching server measures of itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from prometheus_client import Counter, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily

from server.static_batching.generate import Batch

_QUEUE_BUCKETS = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
    120.0,
)
_BEAM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATE_SECONDS = 10.0


class PackageMetrics:
    """Series of one server: those that vLLM has too under its names, the others under ours.

    Args:
        model: value of the label ``model_name``.
    """

    def __init__(self, model: str) -> None:
        self._model = model

        def counter(name: str, text: str) -> Counter:
            return Counter(f"static_batching:{name}", text, ["model_name"], registry=None)

        self._queue_time = Histogram(
            "vllm:request_queue_time_seconds",
            "Time that requests waited to be packed.",
            ["model_name"],
            registry=None,
            buckets=_QUEUE_BUCKETS,
        )
        self._beams = Histogram(
            "static_batching:package_beams",
            "Beams of the packages that were run.",
            ["model_name"],
            registry=None,
            buckets=_BEAM_BUCKETS,
        )
        self._row_steps = counter("row_steps", "Tokens computed for the rows of packages, needed or not.")
        self._wasted = counter("wasted_row_steps", "Of these, tokens computed after their row was done.")
        self._padding = counter("padding_tokens", "Prompt tokens computed that belong to no prompt.")
        self._recent: deque[tuple[float, int]] = deque()

    def packed(self, waited: float) -> None:
        """A request was packed after it had waited for `waited` seconds."""
        self._queue_time.labels(self._model).observe(waited)

    def ran(self, batch: Batch, now: float) -> None:
        """A call of `generate` is done."""
        tokens = sum(len(answer.token_ids) for answers in batch.answers for answer in answers)
        self._beams.labels(self._model).observe(batch.rows)
        self._row_steps.labels(self._model).inc(batch.rows * batch.steps)
        self._wasted.labels(self._model).inc(batch.rows * batch.steps - batch.useful)
        self._padding.labels(self._model).inc(batch.padding)
        self._recent.append((now, tokens))

    def tokens_per_second(self, now: float) -> float:
        """Generated tokens per second over the last ten seconds."""
        while self._recent and self._recent[0][0] < now - _RATE_SECONDS:
            self._recent.popleft()
        return sum(tokens for _, tokens in self._recent) / _RATE_SECONDS

    def totals(self) -> dict[str, float]:
        """The counters, for ``/status``."""
        return {
            name: sum(
                s.value for family in series.collect() for s in family.samples if s.name.endswith("_total")
            )
            for name, series in (
                ("row_steps", self._row_steps),
                ("wasted_row_steps", self._wasted),
                ("padding_tokens", self._padding),
            )
        }

    def collect(self, running: int, waiting: int) -> Iterable[Metric]:
        """All series, with the numbers of requests at this moment."""
        for name, text, value in (
            ("vllm:num_requests_running", "Requests in the package that runs.", running),
            ("vllm:num_requests_waiting", "Requests that wait to be packed.", waiting),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for series in (self._queue_time, self._beams, self._row_steps, self._wasted, self._padding):
            yield from series.collect()
