"""What can be measured at the routes, under the names that existing dashboards know.

Names, labels and buckets of the ``vllm:*`` series are those of vLLM; the ``http_*`` series are
those of prometheus-fastapi-instrumentator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram

from protocol.errors import ApiError
from server.api.jobs import Call
from server.api.service import Delta

_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_FIRST_TOKEN_BUCKETS = (*_FIRST_TOKEN, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_PER_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_REQUEST = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
_REQUEST_BUCKETS = (*_REQUEST, 240.0, 480.0, 960.0, 1920.0, 7680.0)


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
        self._clock = clock

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            series = Histogram(name, text, ["model_name"], registry=registry, buckets=buckets)
            return series.labels(model)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=registry).labels(model)

        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "Time to the first token of a stream.", _FIRST_TOKEN_BUCKETS
        )
        self._per_token = histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time per token of a stream after its first.",
            _PER_TOKEN_BUCKETS,
        )
        self._latency = histogram(
            "vllm:e2e_request_latency_seconds", "Time from request to its last token.", _REQUEST_BUCKETS
        )
        self._prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens processed.")
        self._generated = counter("vllm:generation_tokens", "Tokens generated.")
        self._finished = Counter(
            "vllm:request_success",
            "Answers, by how they ended (abort: client gone or cancelled; error: failed).",
            ["model_name", "finished_reason"],
            registry=registry,
        )
        self._model = model

    @contextmanager
    def measure(self, call: Call) -> Iterator[Callable[[Delta], None]]:
        """Measures one request from here on; call what is yielded with each delta as it comes."""
        start = self._clock()
        first: float | None = None
        tokens = 0
        unfinished = call.unfinished

        def observe(delta: Delta) -> None:
            nonlocal first, tokens, unfinished
            if first is None:
                first = self._clock()
                self._prompt_tokens.inc(call.prompt_tokens)
            tokens += len(delta.token_ids)
            self._generated.inc(len(delta.token_ids))
            if delta.finish_reason is not None:
                unfinished -= 1
                self._finish(delta.finish_reason)

        try:
            yield observe
        except ApiError as error:
            self._finish("abort" if error.body.code == "cancelled" else "error", unfinished)
            raise
        except Exception:
            self._finish("error", unfinished)
            raise
        except BaseException:  # CancelledError: the client went away
            self._finish("abort", unfinished)
            raise
        end = self._clock()
        self._latency.observe(end - start)
        if call.stream and first is not None:
            self._first_token.observe(first - start)
            if tokens > 1:
                self._per_token.observe((end - first) / (tokens - 1))

    def _finish(self, reason: str, answers: int = 1) -> None:
        self._finished.labels(self._model, reason).inc(answers)


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
