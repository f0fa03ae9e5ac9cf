"""When a breaker opens and closes, and whose results count: pure state, virtual time."""

from __future__ import annotations

from client.health.breaker import COOL_DOWN, MAX_COOL_DOWN, OPEN_AT_ONCE, Breaker


def test_the_breaker_opens_on_failures_in_a_row_and_closes_after_a_good_trial() -> None:
    breaker = Breaker()
    for _ in range(OPEN_AT_ONCE - 1):
        breaker.failure(breaker.sent(), 0.0)
    assert breaker.allows(0.0)
    breaker.failure(breaker.sent(), 0.0)
    assert not breaker.allows(0.9 * COOL_DOWN)
    assert breaker.allows(COOL_DOWN)
    trial = breaker.sent()
    assert not breaker.allows(COOL_DOWN)  # one trial at a time
    breaker.success(trial)
    assert breaker.state(COOL_DOWN) == "closed"


def test_the_breaker_opens_on_half_failures() -> None:
    breaker = Breaker()
    late = breaker.sent()
    for _ in range(9):
        breaker.failure(breaker.sent(), 0.0)
        breaker.success(breaker.sent())
    assert breaker.allows(0.0)
    breaker.failure(breaker.sent(), 0.0)
    assert not breaker.allows(0.0)
    breaker.success(late)
    assert not breaker.allows(0.0)


def test_a_failed_trial_doubles_the_cool_down_to_a_limit() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(breaker.sent(), now)
    for step in range(1, 8):
        now += min(COOL_DOWN * 2.0 ** (step - 1), MAX_COOL_DOWN)
        assert breaker.allows(now)
        breaker.failure(breaker.sent(), now)
        assert not breaker.allows(now)


def test_a_neutral_trial_leaves_the_breaker_half_open() -> None:
    breaker = Breaker()
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(breaker.sent(), 0.0)
    breaker.neutral(breaker.sent())
    assert breaker.state(COOL_DOWN) == "half_open" and breaker.allows(COOL_DOWN)


def test_refusals_do_not_count() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.neutral(breaker.sent())
        breaker.failure(breaker.sent(), 0.0)
        breaker.success(breaker.sent())
        breaker.success(breaker.sent())
        breaker.success(breaker.sent())
    assert breaker.allows(0.0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(breaker.sent(), now)
    return breaker


def test_old_results_neither_end_nor_prolong_a_trial() -> None:
    breaker = Breaker()
    old = [breaker.sent() for _ in range(4)]
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(breaker.sent(), 0.0)
    trial = breaker.sent()
    breaker.success(old[0])
    assert breaker.state(COOL_DOWN) == "half_open"
    breaker.failure(old[1], COOL_DOWN)
    breaker.neutral(old[2])
    assert not breaker.allows(COOL_DOWN)  # the trial goes on
    breaker.failure(trial, COOL_DOWN)
    breaker.failure(old[3], 2 * COOL_DOWN)
    assert breaker.allows(3 * COOL_DOWN)  # doubled once


def test_requests_that_fail_beside_the_trial_prolong_nothing() -> None:
    """Where no other server is left, more than one is sent while a breaker is open."""
    breaker = opened()
    tickets = [breaker.sent() for _ in range(7)]
    for ticket in tickets:
        breaker.failure(ticket, COOL_DOWN)
    assert breaker.allows(3 * COOL_DOWN)


def test_any_answer_to_a_request_of_now_closes_it() -> None:
    breaker = opened()
    trial, beside = breaker.sent(), breaker.sent()
    breaker.success(beside)
    assert breaker.state(0.0) == "closed"
    breaker.failure(trial, 0.0)  # sent to the server as it was before
    for _ in range(OPEN_AT_ONCE - 1):
        breaker.failure(breaker.sent(), 0.0)
    assert breaker.state(0.0) == "closed"


def test_failures_of_a_process_that_is_gone_do_not_count_against_the_next() -> None:
    breaker = Breaker()
    old = [breaker.sent() for _ in range(2 * OPEN_AT_ONCE)]
    breaker.reset()
    for ticket in old:
        breaker.failure(ticket, 0.0)
    assert breaker.state(0.0) == "closed"
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(breaker.sent(), 0.0)
    assert breaker.state(0.0) == "open"


def test_a_trial_that_tells_nothing_is_followed_by_another() -> None:
    breaker = opened()
    trial, beside = breaker.sent(), breaker.sent()
    breaker.neutral(beside)
    assert not breaker.allows(COOL_DOWN)
    breaker.neutral(trial)
    assert breaker.allows(COOL_DOWN)
