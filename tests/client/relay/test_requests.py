"""What is read from a request, and when it is tried again."""

from __future__ import annotations

import json

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.health.replica import Replica
from client.relay.retry import BURST, Attempts, RetryBudget
from client.requests.request import read_request
from client.upstream.classify import (
    AnswerTimeout,
    BadAnswer,
    Outcome,
    ReplicaHung,
    StreamFailed,
    Suspicion,
    of_error,
    of_status,
)
from protocol.errors import ApiError, queue_full, unavailable
from protocol.sse import event


def read(route: str, **fields: object) -> tuple[str, bool, int, int, int]:
    request = read_request("id", route, json.dumps(fields).encode())
    return request.model, request.stream, request.choices, request.rows, request.work


def test_the_work_of_several_prompts_is_that_of_all() -> None:
    text = "x" * 4000
    assert read("/v1/completions", model="m", prompt=["x", text, text]) == ("m", False, 3, 3, 100 + 3 * 16)
    assert read("/v1/completions", model="m", prompt=[[1], [1] * 1000], n=2) == (
        "m",
        False,
        4,
        4,
        50 + 4 * 16,
    )
    assert read("/v1/completions", model="m", prompt=[text, 7, None]) == ("m", False, 3, 3, 50 + 3 * 16)
    assert read("/v1/completions", model="m", prompt=[]) == ("m", False, 1, 1, 16)


def test_the_work_of_native_requests() -> None:
    assert read("/completion/v2", model="m", prompt="x" * 400) == ("m", False, 1, 1, 5 + 32)
    config = {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 2}
    assert read("/completion/v1", model="m", prompt=[1] * 40, generation_config=config) == (
        *("m", False, 2, 4),
        2 + 40,
    )
    config = {"max_new_tokens": 10, "n": 3}
    assert read("/completion/v2", model="m", prompt="x", generation_config=config)[2:] == (3, 3, 30)


def test_the_work_of_openai_requests() -> None:
    assert read("/v1/completions", model="m", prompt="x")[2:] == (1, 1, 16)
    assert read("/v1/completions", model="m", prompt=["x", "y"], n=2, max_tokens=5, stream=True) == (
        *("m", True, 4, 4),
        20,
    )
    assert read("/v1/completions", model="m", prompt=[[1, 2], [3]], max_tokens=5)[2:] == (2, 2, 10)
    assert read("/v1/completions", model="m", prompt=[1, 2], max_tokens=5)[2:] == (1, 1, 5)
    messages = [{"role": "user", "content": "x" * 200}]
    messages += [{"role": "user", "content": [{"type": "text", "text": "x" * 200}]}]  # type: ignore[dict-item]
    assert read("/v1/chat/completions", model="m", messages=messages)[4] == 5 + 256
    fields = {"max_completion_tokens": 7, "max_tokens": 9, "num_beams": 2}
    assert read("/v1/chat/completions", model="m", messages=[], **fields)[2:] == (1, 2, 14)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = ["prompt", "messages", "generation_config", "n", "num_beams", "max_tokens", "stream"]


@given(
    st.dictionaries(st.sampled_from(NAMES), JSON),
    st.sampled_from(["/completion/v2", "/v1/completions", "/v1/chat/completions"]),
)
def test_whatever_stands_in_a_request_is_routed(fields: dict[str, object], route: str) -> None:
    request = read_request("id", route, json.dumps(fields | {"model": "m"}).encode())
    assert request.work >= 1 and request.rows >= 1


@given(st.binary())
def test_whatever_is_sent_is_at_worst_a_bad_request(body: bytes) -> None:
    try:
        read_request("id", "/completion/v2", body)
    except ApiError as error:
        assert error.status in (400, 422)


def connection_refused() -> Exception:
    return aiohttp.ClientConnectorError(None, OSError(111, "refused"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "outcome", "retry", "suspicion"),
    [
        (200, Outcome.SUCCESS, False, Suspicion.NONE),
        (400, Outcome.NEUTRAL, False, Suspicion.NONE),
        (404, Outcome.NEUTRAL, False, Suspicion.NONE),
        (422, Outcome.NEUTRAL, False, Suspicion.NONE),
        (429, Outcome.NEUTRAL, True, Suspicion.NONE),
        (500, Outcome.FAILURE, True, Suspicion.NONE),
        (501, Outcome.NEUTRAL, False, Suspicion.NONE),
        (504, Outcome.FAILURE, False, Suspicion.NONE),
        (508, Outcome.NEUTRAL, False, Suspicion.NONE),
        (502, Outcome.FAILURE, True, Suspicion.PROBE),
        (503, Outcome.NEUTRAL, True, Suspicion.PROBE),
    ],
)
def test_judgement_of_answers(status: int, outcome: Outcome, retry: bool, suspicion: Suspicion) -> None:
    verdict = of_status(status)
    assert (verdict.outcome, verdict.retry, verdict.suspicion) == (outcome, retry, suspicion)


def test_a_server_that_lacks_the_model_was_asked_by_mistake() -> None:
    assert of_status(404, b'{"error":{"code":"model_not_found"}}').retry


@pytest.mark.parametrize(
    ("error", "retry", "suspicion"),
    [
        (connection_refused(), True, Suspicion.DOWN),
        (aiohttp.ConnectionTimeoutError(), True, Suspicion.DOWN),
        (aiohttp.ServerDisconnectedError(), True, Suspicion.PROBE),
        (aiohttp.ClientPayloadError(), True, Suspicion.PROBE),
        (ConnectionResetError(), True, Suspicion.PROBE),
        (ReplicaHung(), True, Suspicion.PROBE),
        (BadAnswer(), True, Suspicion.PROBE),
        (AnswerTimeout(), False, Suspicion.PROBE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_judgement_of_failures(error: Exception, retry: bool, suspicion: Suspicion) -> None:
    verdict = of_error(error)
    assert (verdict.outcome, verdict.retry, verdict.suspicion) == (Outcome.FAILURE, retry, suspicion)


def test_judgement_of_error_events() -> None:
    lost = StreamFailed(event(unavailable("lost").json(), name="error"))
    assert of_error(lost).retry and of_error(lost).outcome is Outcome.NEUTRAL
    assert not of_error(StreamFailed(event(queue_full("full").json(), name="error"))).retry
    assert not of_error(StreamFailed(b"event: error\ndata: nonsense\n\n")).retry


def test_faults_of_the_gateway_itself_are_not_blamed_on_servers() -> None:
    with pytest.raises(KeyError):
        of_error(KeyError("x"))


def test_the_budget_of_retries() -> None:
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(1000)) == BURST
    for _ in range(10):
        budget.earn(0.25)
    assert sum(budget.spend() for _ in range(10)) == 2


def test_attempts_are_bounded_but_progress_counts() -> None:
    replica = Replica("continuous_batching", "http://a", "config", 0.0)
    budget, attempts = RetryBudget(), Attempts()
    broken = of_error(ReplicaHung())
    for n in range(3):
        attempts.note(replica, broken, progressed=False)
        assert attempts.may_go_on(broken, 3, budget) == (n < 2)
    attempts.note(replica, broken, progressed=True)
    assert attempts.failed == 1 and attempts.may_go_on(broken, 3, budget)
    assert not attempts.may_go_on(of_status(422), 3, budget)


def test_the_first_loss_of_a_server_costs_no_budget() -> None:
    """It takes all of its requests with it; a request that is lost again and again is another matter."""
    empty = RetryBudget()
    while empty.spend():
        pass
    replica = Replica("continuous_batching", "http://a", "config", 0.0)
    broken, lost = of_error(ReplicaHung()), unavailable("lost", code="engine_lost").json()
    for verdict in (of_status(503), of_status(502), broken):
        attempts = Attempts()
        attempts.note(replica, verdict, progressed=False)
        assert attempts.may_go_on(verdict, 9, empty)
        attempts.note(replica, verdict, progressed=False)
        assert not attempts.may_go_on(verdict, 9, empty)
        assert attempts.may_go_on(verdict, 9, empty, died=True)  # not the request's doing, nor an overload
        assert not attempts.may_go_on(verdict, 2, empty, died=True)
        attempts.note(replica, verdict, progressed=True)  # a stream that came further
        assert attempts.may_go_on(verdict, 9, empty)
    unreachable = of_error(aiohttp.ConnectionTimeoutError())
    for verdict in (of_status(503, lost), unreachable):  # bounded otherwise
        attempts = Attempts()
        for _ in range(2):
            attempts.note(replica, verdict, progressed=False)
            assert attempts.may_go_on(verdict, 9, empty)
    attempts = Attempts()
    attempts.note(replica, of_status(429), progressed=False)
    assert not attempts.may_go_on(of_status(429), 9, empty)


def test_pauses_grow_with_full_jitter() -> None:
    attempts = Attempts(failed=1)
    assert attempts.delay(0.0) == 0 and attempts.delay(1.0) == 0.025
    attempts.failed = 3
    assert attempts.delay(0.5) == 0.05
    attempts.failed = 50
    assert attempts.delay(1.0) == 1.0
