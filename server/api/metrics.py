"""What can be measured at the routes, under the names that existing dashboards know.

Names, labels and buckets of the ``vllm:*`` series are those of vLLM; the ``http_*`` series are
those of prometheus-fastapi-instrumentator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from protocol.errors import INVALID_REQUEST, ApiError
from server.api.jobs import Call
from server.api.service import Delta
from server.api.tallies import CounterTally, HistogramTally

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_FIRST_TOKEN_BUCKETS = (*_FIRST_TOKEN, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_PER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_REQUEST = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
_REQUEST_BUCKETS = (*_REQUEST, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_LENGTHS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
"""Of prompts and answers in tokens; vLLM's end at the length of the model."""
_ANSWERS = (1, 2, 5, 10, 20)
_REASONS = ("stop", "length", "abort", "error")


class RequestMetrics:
    """Latency and tokens of requests.

    Args:
        registry: where the series are registered.
        model: value of the label ``model_name``.
        clock: monotonic seconds.
    """

    def __init__(
        self, registry: CollectorRegistry, model: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.clock = clock

        def histogram(name: str, text: str, buckets: Sequence[float] = _REQUEST_BUCKETS) -> Histogram:
            series = Histogram(f"vllm:{name}", text, ["model_name"], registry=registry, buckets=buckets)
            return series.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, ["model_name"], registry=registry).labels(model)

        self.first_token = histogram(
            "time_to_first_token_seconds", "Time to the first token.", _FIRST_TOKEN_BUCKETS
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds",
            "Mean time per token after the first.",
            _PER_TOKEN_BUCKETS,
        )
        self.inter_token = HistogramTally(
            registry,
            "vllm:inter_token_latency_seconds",
            "Time from one token to the next; of a whole answer, the mean.",
            model,
            _PER_TOKEN_BUCKETS,
        )
        self.latency = histogram("e2e_request_latency_seconds", "Time from request to its last token.")
        self.inference = histogram("request_inference_time_seconds", "The same without the queue.")
        self.prefill = histogram("request_prefill_time_seconds", "Time from the queue to the first token.")
        self.decode = histogram("request_decode_time_seconds", "Time from the first token to the last.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens processed.")
        self.generated = CounterTally(registry, "vllm:generation_tokens", "Tokens generated.", model)
        self.prompt_length = histogram("request_prompt_tokens", "Prompt tokens of a request.", _LENGTHS)
        self.length = histogram("request_generation_tokens", "Tokens generated for a request.", _LENGTHS)
        self.longest = histogram(
            "request_max_num_generation_tokens", "Tokens of a request's longest answer.", _LENGTHS
        )
        self.limit = histogram("request_params_max_tokens", "Tokens that a request asks for.", _LENGTHS)
        self.answers = histogram("request_params_n", "Answers that a request asks for.", _ANSWERS)
        finished = Counter(
            "vllm:request_success",
            "Answers, by how they ended (abort: client gone or cancelled; error: failed).",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._finished = {reason: finished.labels(model, reason) for reason in _REASONS}

    @contextmanager
    def measure(self, call: Call) -> Iterator[Callable[[Delta], None]]:
        """Measures one request from here on; call what is yielded with each delta as it comes."""
        request = _Measured(self, call)
        try:
            yield request.observe
        except ApiError as error:
            if error.body.code == "cancelled":
                self.finish("abort", request.unfinished)
            elif error.body.type != INVALID_REQUEST or error.body.code == "generation_failed":
                self.finish("error", request.unfinished)  # a refused request has no answers that could fail
            raise
        except Exception:
            self.finish("error", request.unfinished)
            raise
        except BaseException:  # CancelledError: the client went away
            self.finish("abort", request.unfinished)
            raise
        request.end()

    def finish(self, reason: str, answers: int = 1) -> None:
        """So many answers ended for `reason`, one of `_REASONS`."""
        self._finished[reason].inc(answers)


class _Measured:
    """One request, from now on."""

    def __init__(self, metrics: RequestMetrics, call: Call) -> None:
        self._metrics = metrics
        self._call = call
        self._start = metrics.clock()
        self._answered = False
        self._first: float | None = None
        """When its first token came, where that is known."""
        self._queued: float | None = None
        self._last: dict[int, float] = {}  # by answer
        self._tokens: dict[int, int] = {}
        self.unfinished = call.unfinished
        """Answers that have still to end."""

    def observe(self, delta: Delta) -> None:
        """The next piece of an answer has come."""
        metrics, now = self._metrics, self._metrics.clock()
        if not self._answered:
            self._answered = True
            metrics.prompt_tokens.inc(self._call.prompt_tokens)
            if self._call.stream:
                self._first = now
        if delta.first_token_seconds is not None:
            first = self._start + delta.first_token_seconds
            self._first = first if self._first is None else min(first, self._first)
        if self._queued is None:
            self._queued = delta.queue_seconds
        if count := len(delta.token_ids):
            metrics.generated.value += count
            last = self._last.get(delta.index) if self._call.stream else None
            if last is not None:
                metrics.inter_token.observe((now - last) / count)
            elif delta.first_token_seconds is not None and count > 1:
                metrics.inter_token.observe((now - self._start - delta.first_token_seconds) / (count - 1))
            self._last[delta.index] = now
            self._tokens[delta.index] = self._tokens.get(delta.index, 0) + count
        if delta.finish_reason is not None:
            self.unfinished -= 1
            metrics.finish(delta.finish_reason)

    def end(self) -> None:
        """All answers have come."""
        metrics, call, end = self._metrics, self._call, self._metrics.clock()
        tokens = sum(self._tokens.values())
        metrics.latency.observe(end - self._start)
        metrics.prompt_length.observe(call.prompt_tokens)
        metrics.length.observe(tokens)
        metrics.longest.observe(max(self._tokens.values(), default=0))
        metrics.limit.observe(call.config.max_new_tokens)
        metrics.answers.observe(call.config.num_choices)
        if self._queued is not None:
            metrics.inference.observe(max(0.0, end - self._start - self._queued))
        if self._first is not None:
            metrics.first_token.observe(self._first - self._start)
            metrics.decode.observe(end - self._first)
            if self._queued is not None:
                metrics.prefill.observe(max(0.0, self._first - self._start - self._queued))
            if tokens > 1:
                metrics.per_token.observe((end - self._first) / (tokens - 1))


class HttpMetrics:
    """Requests and their durations, by route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["method", "handler"]
        self._requests = Counter(
            "http_requests", "Requests by route and status.", [*labels, "status"], registry=registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds", "Time to the last byte of an answer.", labels, registry=registry
        )

    def observe(self, method: str, handler: str, status: int, seconds: float) -> None:
        self._requests.labels(method, handler, str(status)).inc()
        self._durations.labels(method, handler).observe(seconds)
