"""What is measured of one request, by a clock that the test sets."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from protocol.errors import cancelled, internal, unavailable, unprocessable
from protocol.generation import GenerationConfig
from server.api.jobs import Call
from server.api.metrics import RequestMetrics
from server.api.service import Delta
from tests.dashboard import samples

MODEL = "m"


class Request:
    """Deltas at times that are told, and what came of them."""

    def __init__(self, *, stream: bool) -> None:
        self.now = 0.0
        self._registry = CollectorRegistry()
        metrics = RequestMetrics(self._registry, MODEL, lambda: self.now)
        config = GenerationConfig(n=2, do_sample=True)
        self._measure = metrics.measure(Call([[1, 2, 3]], config, 0, stream, None, str))

    def run(self, *pieces: tuple[float, Delta]) -> None:
        with self._measure as observe:
            for self.now, delta in pieces:
                observe(delta)

    def fail(self, error: Exception) -> None:
        with pytest.raises(type(error)), self._measure:
            raise error

    def ended(self, reason: str) -> float:
        """Answers that ended for `reason`."""
        name = {"model_name": MODEL, "finished_reason": reason}
        found = self._registry.get_sample_value("vllm:request_success_total", name)
        assert found is not None
        return found

    def sums(self, series: str) -> tuple[float, float]:
        """(count, sum) of a histogram."""
        metrics = generate_latest(self._registry).decode()
        count, total = (samples(metrics, f"{series}_{part}", MODEL)[MODEL] for part in ("count", "sum"))
        return count, total


def test_a_whole_answer_whose_first_token_is_known() -> None:
    request = Request(stream=False)
    told = {"queue_seconds": 1.0, "first_token_seconds": 3.0}
    request.run(
        (7.0, Delta(0, "abcde", [1] * 5, "stop", **told)), (9.0, Delta(1, "abc", [1] * 3, "length", **told))
    )
    assert request.sums("time_to_first_token_seconds") == (1, 3.0)
    assert request.sums("request_prefill_time_seconds") == (1, 2.0)
    assert request.sums("request_decode_time_seconds") == (1, 6.0)
    assert request.sums("inter_token_latency_seconds") == (2, 4.0 / 4 + 6.0 / 2)
    assert request.sums("request_time_per_output_token_seconds") == (1, pytest.approx(6.0 / 7))


def test_a_whole_answer_whose_first_token_is_not_known() -> None:
    """As those of static batching: nothing is made up."""
    request = Request(stream=False)
    request.run((7.0, Delta(0, "ab", [1, 1], "stop")), (9.0, Delta(1, "ab", [1, 1], "stop")))
    for series in (
        "time_to_first_token_seconds",
        "request_decode_time_seconds",
        "inter_token_latency_seconds",
    ):
        assert request.sums(series) == (0, 0.0)
    assert request.sums("e2e_request_latency_seconds") == (1, 9.0)


def test_a_stream_counts_what_its_client_sees() -> None:
    request = Request(stream=True)
    pieces = [
        (2.0, Delta(0, "a", [1])),
        (3.0, Delta(0, "bc", [1, 1], "stop")),
        (5.0, Delta(1, "", [1], "stop")),
    ]
    request.run(*pieces)
    assert request.sums("time_to_first_token_seconds") == (1, 2.0)
    assert request.sums("inter_token_latency_seconds") == (1, 0.5)
    assert request.sums("request_decode_time_seconds") == (1, 3.0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (internal("broken"), "error"),
        (unavailable("gone"), "error"),
        (unprocessable("not finite", code="generation_failed"), "error"),
        (cancelled(), "abort"),
        (ValueError("a fault of the server's"), "error"),
    ],
)
def test_answers_that_fail(error: Exception, reason: str) -> None:
    request = Request(stream=False)
    request.fail(error)
    assert {each: request.ended(each) for each in ("error", "abort")} == {"error": 0, "abort": 0, reason: 2}


def test_what_is_refused_is_no_failed_answer() -> None:
    request = Request(stream=False)
    request.fail(unprocessable("n: too many", param="n", code="cannot_fit"))
    assert (request.ended("error"), request.ended("abort")) == (0, 0)
