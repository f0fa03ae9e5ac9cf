"""Load of one replica: pure state, virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.health.load import REPORT_SECONDS, Load


def nothing() -> None:
    pass


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 8), st.lists(st.integers(0, 500)))))
def test_leases_give_back_exactly_what_they_took(work: list[tuple[int, int, list[int]]]) -> None:
    load = Load()
    leases = [load.lease(tokens, rows, nothing) for tokens, rows, _ in work]
    for lease in leases:
        lease.__enter__()
    assert (load.tokens, load.rows) == (sum(w[0] for w in work), sum(w[1] for w in work))
    for lease, (_, _, steps) in zip(leases, work, strict=True):
        for step in steps:
            lease.advance(step)
        lease.__exit__(None, None, None)
        lease.__exit__(None, None, None)
    assert (load.tokens, load.rows, load.leases) == (0, 0, set())


def test_a_report_corrects_the_leases_and_fades() -> None:
    load = Load()
    with load.lease(100, 1, nothing):
        load.report_tokens(400, 10.0)  # others use the server too
        assert load.expected_tokens(10.0) == 400
        assert load.expected_tokens(10.0 + REPORT_SECONDS / 2) == 250
        assert load.expected_tokens(10.0 + REPORT_SECONDS) == 100
        load.report_tokens(30, 20.0)  # it is further than the lease tells
        assert load.expected_tokens(20.0) == 30
    assert load.expected_tokens(20.0) == 0
    load.report_requests(6, 30.0)
    assert load.expected_rows(30.0) == 6 and load.expected_rows(30.0 + REPORT_SECONDS) == 0


def test_the_expected_wait() -> None:
    load = Load()
    load.slots, load.tokens = 4, 400
    assert load.expected_wait(0.0, 3) == 0
    # four rows of 100 tokens each: one has to end, and four run at a time
    assert load.expected_wait(0.0, 4) == 25
    load.tokens = 800
    assert load.expected_wait(0.0, 8) == 5 * 100 / 4
