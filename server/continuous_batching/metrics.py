"""The engine's numbers as Prometheus metrics, under vLLM's names where the meaning is the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from prometheus_client import Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from server.continuous_batching.stats import EngineStats

_GAUGES = {
    "vllm:num_requests_running": ("running", "Requests in the batch."),
    "vllm:num_requests_waiting": ("waiting", "Requests in the queue."),
    "vllm:num_requests_swapped": ("swapped", "Requests swapped out to host memory."),
    "vllm:kv_cache_usage_perc": (
        "cache_usage",
        "Share of cache blocks in use, 0 to 1, in the fullest group.",
    ),
    "vllm:cpu_cache_usage_perc": (
        "host_cache_usage",
        "Share of swap blocks in use, 0 to 1, in the fullest group.",
    ),
    "engine:running_beams": ("running_rows", "Sequences in the batch."),
    "engine:pending_tokens": ("pending_tokens", "Work not yet done, in generated tokens."),
}
_COUNTERS = {
    "vllm:prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache."),
    "vllm:prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache."),
    "vllm:spec_decode_num_draft_tokens": ("drafted_tokens", "Tokens guessed by prompt lookup."),
    "vllm:spec_decode_num_accepted_tokens": ("accepted_tokens", "Guessed tokens that were right."),
    "engine:steps": ("steps", "Forward passes."),
    "engine:computed_prompt_tokens": ("computed_prompt_tokens", "Prompt tokens computed."),
    "engine:preemptions_by_swap": ("preempted_by_swap", "Preemptions by swapping."),
    "engine:preemptions_by_recompute": ("preempted_by_recompute", "Preemptions by recomputation."),
    "engine:swapped_out_blocks": ("swapped_out_blocks", "Blocks copied to host memory."),
    "engine:swapped_in_blocks": ("swapped_in_blocks", "Blocks copied back."),
    "engine:copies_on_write": ("copies_on_write", "Blocks copied before a shared one was written."),
    "engine:step_failures": ("step_failures", "Forward passes that failed."),
}
_QUEUE_BUCKETS = (0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 1000.0)

RATE_WINDOW_SECONDS = 5.0


class EngineMetrics:
    """Keeps the latest stats and turns them into metrics.

    Args:
        model: value of the label ``model_name``.
    """

    def __init__(self, model: str) -> None:
        self.stats = EngineStats()
        self._model = model
        self._samples: deque[tuple[float, int]] = deque()
        self._queue_time = Histogram(
            "vllm:request_queue_time_seconds",
            "Time from submission to the first step.",
            ["model_name"],
            registry=None,
            buckets=_QUEUE_BUCKETS,
        )

    def update(self, stats: EngineStats, now: float) -> None:
        """Take a snapshot made at `now` (monotonic seconds)."""
        if stats.generated_tokens < self.stats.generated_tokens:
            self._samples.clear()  # a new engine counts from zero
        self.stats = stats
        self._samples.append((now, stats.generated_tokens))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_WINDOW_SECONDS:
            self._samples.popleft()

    def observe_queue_time(self, seconds: float) -> None:
        self._queue_time.labels(self._model).observe(seconds)

    def tokens_per_second(self, now: float) -> float:
        """Generated tokens per second over the last seconds."""
        recent = [sample for sample in self._samples if sample[0] >= now - RATE_WINDOW_SECONDS]
        if len(recent) < 2 or recent[-1][0] == recent[0][0]:
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])

    def collect(self, restarts: int) -> Iterable[Metric]:
        """Everything, at a scrape."""
        for name, (field, text) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model], getattr(self.stats, field))
            yield gauge
        groups = GaugeMetricFamily(
            "engine:cache_group_usage_perc",
            "Share of cache blocks in use, 0 to 1, of each group of layers.",
            labels=["model_name", "group"],
        )
        for group, usage in self.stats.cache_usage_by_group.items():
            groups.add_metric([self._model, group], usage)
        yield groups
        counters = {name: (getattr(self.stats, field), text) for name, (field, text) in _COUNTERS.items()}
        preemptions = self.stats.preempted_by_swap + self.stats.preempted_by_recompute
        counters["vllm:num_preemptions"] = (preemptions, "Running requests that had to leave the batch.")
        counters["engine:restarts"] = (restarts, "Engine processes started after one was lost.")
        for name, (value, text) in counters.items():
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        yield from self._queue_time.collect()
