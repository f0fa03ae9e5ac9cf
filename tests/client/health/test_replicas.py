"""What replicas are known to be, and when they are asked: pure state, virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.config import GatewayConfig
from client.health.heartbeat import next_delay
from client.health.replica import Replica, ReplicaState
from client.health.replicas import Registry
from client.health.report import Report
from protocol.accepts import Accepts
from protocol.status import ServerLoad, ServerState, ServerStatus, ServiceKind

CB: ServiceKind = "continuous_batching"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Registry:
    return Registry(clock)


@pytest.fixture
def replica(registry: Registry) -> Replica:
    return registry.join(CB, "http://a", "config")


def status(
    state: ServerState = ServerState.READY, model: str = "m", kind: ServiceKind = CB, pending: int = 0
) -> Report:
    return Report.of(
        ServerStatus(
            service=kind,
            state=state,
            model_id=model,
            version="0",
            uptime_seconds=1.0,
            load=ServerLoad(pending_tokens=pending),
        )
    )


def test_a_new_server_is_trusted_at_once_a_lost_one_after_proof(registry: Registry, replica: Replica) -> None:
    assert replica.state is ReplicaState.UNKNOWN
    registry.reported(replica, status())
    assert replica.state is ReplicaState.READY
    registry.refused(replica, "refused")
    assert replica.state is ReplicaState.DOWN
    registry.reported(replica, status())
    assert replica.state is ReplicaState.DOWN
    registry.refused(replica, "again")
    registry.reported(replica, status())
    assert replica.state is ReplicaState.DOWN  # proofs are counted in a row
    registry.reported(replica, status())
    assert replica.state is ReplicaState.READY


def test_a_broken_connection_is_only_a_suspicion(registry: Registry, replica: Replica) -> None:
    registry.reported(replica, status())
    registry.suspect(replica, "reset")
    assert replica.state is ReplicaState.SUSPECT
    registry.reported(replica, status())
    assert replica.state is ReplicaState.READY
    registry.refused(replica, "refused")
    registry.suspect(replica, "reset")
    assert replica.state is ReplicaState.DOWN


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (ServerState.LOADING, ReplicaState.LOADING),
        (ServerState.DRAINING, ReplicaState.DRAINING),
        (ServerState.FAILED, ReplicaState.DOWN),
    ],
)
def test_what_a_server_says_of_itself(
    registry: Registry, replica: Replica, said: ServerState, state: ReplicaState
) -> None:
    registry.reported(replica, status())
    registry.reported(replica, status(said))
    assert replica.state is state
    assert registry.models() == [] and registry.serving(CB, "m") == [replica]


def test_a_hung_server_loses_its_leases_unless_it_talks(
    registry: Registry, replica: Replica, clock: Clock
) -> None:
    registry.reported(replica, status())
    lost: list[int] = []
    with replica.load.lease(1, 1, lambda: lost.append(1)):
        clock.now = 10.0
        replica.heard_at = 9.0
        registry.missed(replica, probed_at=8.0)
        registry.missed(replica, probed_at=8.0)
        assert replica.state is ReplicaState.READY  # slow, but alive
        registry.missed(replica, probed_at=9.5)
        assert replica.state is ReplicaState.READY and not lost
        registry.missed(replica, probed_at=9.5)
        assert replica.state is ReplicaState.DOWN and lost == [1]


def test_a_restarted_server_begins_with_a_closed_breaker(registry: Registry, replica: Replica) -> None:
    registry.reported(replica, status())
    for _ in range(5):
        replica.breaker.failure(replica.breaker.sent(), 0.0)
    registry.suspect(replica, "reset")
    registry.reported(replica, status())
    assert not replica.breaker.allows(0.0)  # it is the same process
    registry.reported(replica, status(ServerState.LOADING))
    registry.reported(replica, status())
    assert replica.breaker.allows(0.0)


def test_another_model_is_found_under_its_name(registry: Registry, replica: Replica) -> None:
    registry.reported(replica, status())
    registry.reported(replica, status(model="n"))
    assert registry.serving(CB, "m") == () and registry.serving(CB, "n") == [replica]


def test_configure_keeps_what_stays(registry: Registry, replica: Replica) -> None:
    changes: list[str] = []
    registry.reported(replica, status())
    registry.listeners.append(lambda replica: changes.append(replica.url))
    joined = registry.join(CB, "http://c", "event")
    registry.configure([(CB, "http://a"), (CB, "http://b")])
    assert {r.url for r in registry} == {"http://a", "http://b", "http://c"}
    assert registry.get(CB, "http://a") is replica and replica.state is ReplicaState.READY
    registry.configure([(CB, "http://b")])
    assert replica not in registry and registry.serving(CB, "m") == ()
    assert joined in registry
    assert changes == ["http://c", "http://b", "http://a"]


def test_how_long_a_replica_is_waited_for(registry: Registry, replica: Replica, clock: Clock) -> None:
    assert replica.may_return(1.0, patience=2.0)
    assert not replica.may_return(3.0, patience=2.0)
    registry.reported(replica, status(ServerState.LOADING))
    assert replica.may_return(1000.0, patience=2.0)
    clock.now = 1000.0
    registry.refused(replica, "refused")
    assert replica.may_return(1001.0, patience=2.0)
    registry.drain(replica)
    assert replica.may_return(1001.0, patience=2.0) and not replica.may_return(1003.0, patience=2.0)


def test_when_a_server_is_asked_next(registry: Registry, replica: Replica) -> None:
    config = GatewayConfig(heart_beat_interval_seconds=600)
    assert [round(next_delay(replica, n, config, 0.5), 3) for n in (1, 2, 3, 20)] == [0.5, 0.75, 1.125, 5.0]
    assert next_delay(replica, 10**6, config, 0.5) == 5.0  # one that is down for months
    quick = GatewayConfig(heart_beat_interval_seconds=1)
    assert next_delay(replica, 20, quick, 0.5) == 1.0
    registry.reported(replica, status())
    assert next_delay(replica, 0, config, 0.5) == 600
    assert next_delay(replica, 0, config, 0.0) == pytest.approx(540)
    with replica.load.lease(1, 1, lambda: None):
        assert next_delay(replica, 0, config, 0.5) == 2
    assert next_delay(replica, 0, config, 0.5) == 2  # once more after the work is done
    replica.probed_picks = replica.load.picks
    assert next_delay(replica, 0, config, 0.5) == 600
    registry.refused(replica, "refused")
    registry.reported(replica, status())
    assert next_delay(replica, 5, config, 0.5) == 0.2


def test_servers_with_the_same_terms_are_known_as_such(registry: Registry, replica: Replica) -> None:
    """So that a request's options are looked at only where servers of its model differ."""
    peer = registry.join("static_batching", "http://h:9", "config")

    def told(one: Replica, *routes: str, model: str = "m") -> None:
        accepts = Accepts(routes=routes)
        registry.reported(one, replace(status(), kind=one.kind, accepts=accepts, names=(model,)))

    told(replica, "/a")
    assert registry.sole_terms("m") is None, "the other may be of this model, too"
    told(peer, "/a")
    sole = registry.sole_terms("m")
    assert sole is replica.terms is peer.terms and sole is not None and sole.routes == {"/a"}
    told(peer, "/a", "/b")
    assert registry.sole_terms("m") is None
    told(peer, "/b", model="n")
    assert registry.sole_terms("m") is replica.terms and registry.sole_terms("n") is peer.terms
    registry.remove(peer)
    assert registry.sole_terms("n") is None
