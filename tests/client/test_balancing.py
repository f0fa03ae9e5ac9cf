"""Breaker, load, choice of a replica and affinity: pure state, virtual time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gateway.balancing import compare
from client.affinity import CHUNK_CHARS, CHUNK_IDS, MAX_CHUNKS, Affinity, prefix_keys
from client.balancer import pick
from client.breaker import COOL_DOWN, MAX_COOL_DOWN, OPEN_AT_ONCE, Breaker
from client.load import REPORT_SECONDS, Load
from client.replicas import Replica, ReplicaState


def replica(name: str = "a", state: ReplicaState = ReplicaState.READY, slots: int = 8) -> Replica:
    made = Replica("continuous_batching", f"http://{name}", "config", 0.0, state)
    made.load.slots = slots
    return made


def nothing() -> None:
    pass


# --- breaker


def test_the_breaker_opens_on_failures_in_a_row_and_closes_after_a_good_trial() -> None:
    breaker = Breaker()
    for _ in range(OPEN_AT_ONCE - 1):
        breaker.failure(0.0)
    assert breaker.allows(0.0)
    breaker.failure(0.0)
    assert not breaker.allows(0.9 * COOL_DOWN)
    assert breaker.allows(COOL_DOWN)
    breaker.sent()
    assert not breaker.allows(COOL_DOWN)  # one trial at a time
    breaker.success()
    assert breaker.state(COOL_DOWN) == "closed"


def test_the_breaker_opens_on_half_failures() -> None:
    breaker = Breaker()
    for _ in range(9):
        breaker.failure(0.0)
        breaker.success()
    assert breaker.allows(0.0)
    breaker.failure(0.0)
    assert not breaker.allows(0.0)
    breaker.success()  # late
    assert not breaker.allows(0.0)


def test_a_failed_trial_doubles_the_cool_down_to_a_limit() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(now)
    for step in range(1, 8):
        now += min(COOL_DOWN * 2.0 ** (step - 1), MAX_COOL_DOWN)
        assert breaker.allows(now)
        breaker.sent()
        breaker.failure(now)
        assert not breaker.allows(now)


def test_a_neutral_trial_leaves_the_breaker_half_open() -> None:
    breaker = Breaker()
    for _ in range(OPEN_AT_ONCE):
        breaker.failure(0.0)
    breaker.sent()
    breaker.neutral()
    assert breaker.state(COOL_DOWN) == "half_open" and breaker.allows(COOL_DOWN)


def test_refusals_do_not_count() -> None:
    breaker = Breaker()
    for _ in range(100):
        breaker.neutral()
        breaker.failure(0.0)
        breaker.success()
        breaker.success()
        breaker.success()
    assert breaker.allows(0.0)


# --- load


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


# --- choice


def test_only_ready_untried_replicas_with_a_closed_breaker_are_picked() -> None:
    others = [replica(str(state), state) for state in ReplicaState if state is not ReplicaState.READY]
    tried, broken, good = replica("tried"), replica("broken"), replica("good")
    for _ in range(OPEN_AT_ONCE):
        broken.breaker.failure(0.0)
    good.load.rows = 100
    assert pick([*others, tried, broken, good], {tried}, 0.0) is good
    assert pick([*others, tried, broken], {tried}, 0.0) is None
    assert pick([*others, tried, broken], {tried}, COOL_DOWN) is broken
    assert pick([], (), 0.0) is None


def test_equal_replicas_take_turns() -> None:
    replicas = [replica(name) for name in "abc"]
    picked = []
    for _ in range(6):
        chosen = pick(replicas, (), 0.0)
        assert chosen is not None
        with chosen.load.lease(10, 1, nothing):
            picked.append(chosen.url[-1])
    assert picked == list("abcabc")


def test_a_free_slot_beats_less_work() -> None:
    """Eight short answers fill a server; seven long ones leave a slot."""
    full, long = replica("full"), replica("long")
    full.load.rows, full.load.tokens = 8, 80
    long.load.rows, long.load.tokens = 7, 7000
    assert pick([full, long], (), 0.0) is long


def test_among_full_servers_the_one_with_less_work_before_the_request() -> None:
    a, b = replica("a"), replica("b")
    a.load.rows, a.load.tokens = 9, 9000
    b.load.rows, b.load.tokens = 12, 1200
    assert pick([a, b], (), 0.0) is b


def test_a_larger_server_takes_more() -> None:
    small, large = replica("small", slots=4), replica("large", slots=32)
    small.load.rows, large.load.rows = 2, 8
    assert pick([small, large], (), 0.0) is large


def test_affinity_yields_to_imbalance() -> None:
    known, idle = replica("known"), replica("idle")
    known.load.rows = 2
    assert pick([known, idle], (), 0.0, affine=known, slack=0.25) is known
    known.load.rows = 3
    assert pick([known, idle], (), 0.0, affine=known, slack=0.25) is idle
    known.load.rows, known.load.tokens, idle.load.rows, idle.load.tokens = 8, 80, 7, 70
    assert pick([known, idle], (), 0.0, affine=known, slack=math.inf) is idle  # it would wait there
    known.state = ReplicaState.DOWN
    assert pick([known, idle], (), 0.0, affine=known, slack=1.0) is idle


def test_requests_queue_less_than_under_other_policies() -> None:
    results = compare(requests=6000, utilisation=0.7)
    mean, p99 = results["least expected wait"]
    for other in ("round robin", "random"):
        assert mean < results[other][0] / 3 and p99 < results[other][1] / 2
    assert mean < results["least work"][0] and mean < results["least connections"][0]


# --- affinity


def test_keys_cover_whole_chunks_of_the_beginning() -> None:
    system = "You are helpful. " * 100
    a, b = prefix_keys(system + "one"), prefix_keys(system + "two")
    assert len(a) == len(system) // CHUNK_CHARS and a == b
    assert prefix_keys("x" + system)[0] != a[0]
    assert prefix_keys(system[: CHUNK_CHARS - 1]) == []
    assert len(prefix_keys("x" * 10**6)) == MAX_CHUNKS
    ids = list(range(300))
    assert len(prefix_keys(ids)) == 2 and prefix_keys(ids)[:1] == prefix_keys(ids[:CHUNK_IDS])


@pytest.mark.parametrize("prompt", [[{}] * 200, [[1]] * 200, [1] * 127 + ["x"], [True] * 200, [None] * 200])
def test_prompts_that_are_no_token_ids_have_no_keys(prompt: list[object]) -> None:
    assert prefix_keys(prompt) == []  # type: ignore[arg-type]


def test_the_longest_known_beginning_wins_and_memory_is_bounded() -> None:
    affinity = Affinity(max_keys=4)
    a, b = replica("a"), replica("b")
    affinity.record("m", [1, 2], a)
    affinity.record("m", [1, 3], b)
    assert affinity.find("m", [1, 2, 9]) is a
    assert affinity.find("m", [1, 9]) is b
    assert affinity.find("other", [1, 2]) is None
    affinity.record("m", [4, 5], b)
    assert affinity.find("m", [9, 2]) is None  # the oldest went first
    affinity.forget(b)
    assert affinity.find("m", [1, 3, 4, 5]) is None
