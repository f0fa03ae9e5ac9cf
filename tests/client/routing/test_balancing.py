"""Choice of a replica and affinity: pure state, virtual time."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.gateway.balancing import compare
from client.health.breaker import COOL_DOWN, OPEN_AT_ONCE
from client.health.replica import Replica, ReplicaState
from client.health.replicas import Registry
from client.health.report import Report
from client.requests.prefix import CHUNK_CHARS, CHUNK_IDS, MAX_CHUNKS, prefix_keys
from client.requests.request import read_request
from client.routing.affinity import Affinity
from client.routing.balancer import pick
from client.routing.config import RoutingConfig
from client.routing.router import Router
from protocol.status import ServerLoad, ServerState


def replica(name: str = "a", state: ReplicaState = ReplicaState.READY, slots: int = 8) -> Replica:
    made = Replica("continuous_batching", f"http://{name}", "config", 0.0, state)
    made.load.slots = slots
    return made


def test_only_ready_untried_replicas_with_a_closed_breaker_are_picked() -> None:
    others = [replica(str(state), state) for state in ReplicaState if state is not ReplicaState.READY]
    tried, broken, good = replica("tried"), replica("broken"), replica("good")
    for _ in range(OPEN_AT_ONCE):
        broken.breaker.failure(broken.breaker.sent(), 0.0)
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
        with chosen.load.lease(10, 1, lambda: None):
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
    mean, p99 = results["least_wait"]
    for other in ("round_robin", "random"):
        assert results["power_of_two"][0] < results[other][0] / 2
        assert mean < results[other][0] / 3 and p99 < results[other][1] / 2
    assert mean < results["least_work"][0] and mean < results["least_connections"][0]


# --- affinity


def test_keys_cover_whole_chunks_of_the_beginning() -> None:
    system = "You are helpful. " * 100
    a, b = prefix_keys(system + "one"), prefix_keys(system + "two")
    assert len(a) == len(system) // CHUNK_CHARS and a == b
    assert prefix_keys("x" + system)[0] != a[0]
    assert prefix_keys(system[: CHUNK_CHARS - 1]) == []
    assert len(prefix_keys("x" * 10**7)) == MAX_CHUNKS
    ids = list(range(300))
    assert len(prefix_keys(ids)) == 2 and prefix_keys(ids)[:1] == prefix_keys(ids[:CHUNK_IDS])


@pytest.mark.parametrize("length", [8_192, 20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("of_ids", [False, True])
def test_long_prompts_are_told_apart_by_what_comes_late(length: int, of_ids: bool) -> None:
    """By a piece of at most an eighth of what is before it."""

    def keys(text: str) -> list[int]:
        return prefix_keys([ord(c) for c in text[::4]] if of_ids else text)

    common = "x" * length
    a, b = keys(common + "a" * (length // 4)), keys(common + "b" * (length // 4))
    shared = sum(one == two for one, two in zip(a, b, strict=True))
    assert shared < len(a) and set(a[shared:]).isdisjoint(b[shared:])
    assert len(keys(common)) - 1 <= shared <= len(keys(common))


def test_keys_do_not_depend_on_how_long_the_prompt_is() -> None:
    text = "".join(map(str, range(50_000)))
    whole = prefix_keys(text)
    for length in (0, 511, 512, 8_191, 8_192, 8_193, 9_216, 50_000, 123_456):
        keys = prefix_keys(text[:length])
        assert keys == whole[: len(keys)]


@pytest.mark.parametrize(
    "prompt", [[{}] * 200, [[1]] * 200, [1] * 127 + ["x"], [True] * 200, [None] * 200, [2**70] * 200]
)
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


def test_a_removed_server_is_forgotten() -> None:
    registry = Registry(lambda: 0.0)
    router = Router(registry, RoutingConfig, lambda: 0.0, lambda request: [])
    one = registry.join("continuous_batching", "http://a", "event")
    load, state = ServerLoad(), ServerState.READY
    registry.reported(
        one,
        Report(kind=one.kind, state=state, names=("m",), version="0", load=load),
    )
    request = read_request("id", "/completion/v2", json.dumps({"model": "m", "prompt": "x" * 600}).encode())
    assert router.next_replica(request) is one
    assert router._affinity.find("m", request.prefix) is one
    registry.remove(one)
    assert router._affinity.find("m", request.prefix) is None
