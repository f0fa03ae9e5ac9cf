"""What the gateway knows of each server. State only: `heartbeat` and `relay` do the I/O.

A replica's life::

    UNKNOWN ──ready──► READY ◄──ready── SUSPECT     a broken connection: no new work until probed
                         └──────broken────►
    any ──refused, hung, unfit──► DOWN ──ready twice──► READY
    LOADING, DRAINING             what the server says of itself
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from yarl import URL

from client.breaker import Breaker
from client.load import DEFAULT_SLOTS, Load
from protocol.status import ServerState, ServerStatus, ServiceKind

PROOFS = 2
"""Good probes in a row after which a lost server is trusted again."""
MISSES = 2
"""Probes in a row without an answer after which a server counts as hung."""


class ReplicaState(StrEnum):
    """Only `READY` is given work."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    LOADING = "loading"
    DRAINING = "draining"
    DOWN = "down"


_REPORTED = {
    ServerState.LOADING: ReplicaState.LOADING,
    ServerState.READY: ReplicaState.READY,
    ServerState.DRAINING: ReplicaState.DRAINING,
    ServerState.FAILED: ReplicaState.DOWN,
}


@dataclass(eq=False, slots=True)
class Replica:
    """One server."""

    kind: ServiceKind
    url: str
    joined: Literal["config", "event"]
    since: float
    """When the state was entered."""
    state: ReplicaState = ReplicaState.UNKNOWN
    reason: str = "not probed yet"
    model_id: str | None = None
    """Kept while the server is away, so that its model stays known."""
    status: ServerStatus | None = None
    status_at: float = 0.0
    heard_at: float = 0.0
    """When bytes of an answer last came."""
    load: Load = field(default_factory=Load)
    breaker: Breaker = field(default_factory=Breaker)
    proofs: int = 0
    """Good probes in a row since it was down."""
    misses: int = 0
    """Probes in a row without an answer."""
    probed_picks: int = 0
    """`load.picks` at the last probe: without more since and without leases the server is idle."""
    _urls: dict[str, URL] = field(default_factory=dict)

    def url_of(self, route: str) -> URL:
        """Where `route` is on this server."""
        url = self._urls.get(route)
        if url is None:
            url = self._urls[route] = URL(self.url + route)
        return url

    def may_return(self, now: float, patience: float) -> bool:
        """Whether it is worth waiting for this replica to take work (again)."""
        away = self.state in (ReplicaState.DOWN, ReplicaState.UNKNOWN, ReplicaState.DRAINING)
        return not away or now - self.since < patience


class Registry:
    """All replicas, found by address and by model, and the rules by which their state changes.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._replicas: dict[tuple[ServiceKind, str], Replica] = {}
        self._by_model: dict[tuple[ServiceKind, str], list[Replica]] = {}
        self.listeners: list[Callable[[Replica], None]] = []
        """Called after a replica came, went or changed its state."""

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __contains__(self, replica: Replica) -> bool:
        return self.get(replica.kind, replica.url) is replica

    def get(self, kind: ServiceKind, url: str) -> Replica | None:
        return self._replicas.get((kind, url))

    def serving(self, kind: ServiceKind, model: str) -> Sequence[Replica]:
        """Replicas of `model`, in whatever state."""
        return self._by_model.get((kind, model), ())

    def models(self, kinds: Iterable[ServiceKind]) -> list[str]:
        """Ids of the models that a live server of one of `kinds` serves."""
        wanted = set(kinds)
        live = (r for r in self if r.state is ReplicaState.READY and r.kind in wanted)
        return sorted({r.model_id for r in live if r.model_id is not None})

    # who there is

    def configure(self, servers: Iterable[tuple[ServiceKind, str]]) -> None:
        """Make the configured replicas those at `servers`; ones that stay keep all their state."""
        wanted = set(servers)
        for replica in list(self):
            if replica.joined == "config" and (replica.kind, replica.url) not in wanted:
                self.remove(replica)
        for kind, url in sorted(wanted):
            self.join(kind, url, "config")

    def join(self, kind: ServiceKind, url: str, joined: Literal["config", "event"]) -> Replica:
        """The replica at `url`, added if it is new."""
        replica = self.get(kind, url)
        if replica is None:
            replica = Replica(kind, url, joined, since=self._clock())
            self._replicas[kind, url] = replica
            self._notify(replica)
        elif joined == "config":
            replica.joined = "config"
        return replica

    def remove(self, replica: Replica) -> None:
        """Forget `replica`: no new work; what it is doing may finish."""
        del self._replicas[replica.kind, replica.url]
        self._index()
        self._notify(replica)

    # what happens to it

    def reported(self, replica: Replica, status: ServerStatus) -> None:
        """A probe was answered with `status`."""
        now = self._clock()
        replica.status, replica.status_at, replica.misses = status, now, 0
        if status.service != replica.kind:
            self._enter(replica, ReplicaState.DOWN, f"is a {status.service} server")
            return
        replica.load.report_tokens(status.load.pending_tokens, now)
        replica.load.report_requests(status.load.running + status.load.waiting + status.load.swapped, now)
        replica.load.slots = status.capacity.max_beams if status.capacity else DEFAULT_SLOTS
        if status.model_id != replica.model_id:
            replica.model_id = status.model_id
            self._index()
        state = _REPORTED[status.state]
        if state is ReplicaState.READY and replica.state is ReplicaState.DOWN:
            replica.proofs += 1
            if replica.proofs < PROOFS:
                return
        self._enter(replica, state, f"reports {status.state}")

    def refused(self, replica: Replica, reason: str) -> None:
        """No connection could be made."""
        self._enter(replica, ReplicaState.DOWN, reason)

    def missed(self, replica: Replica, probed_at: float) -> None:
        """A probe sent at `probed_at` got no answer in time.

        A server that talks to anyone meanwhile is slow, not hung. One that hangs loses its leases.
        """
        if replica.heard_at > probed_at:
            return
        replica.misses += 1
        if replica.misses < MISSES and replica.state is ReplicaState.READY:
            return
        self._enter(replica, ReplicaState.DOWN, "accepts connections but does not answer")
        for lease in list(replica.load.leases):
            lease.lost()

    def unfit(self, replica: Replica, reason: str) -> None:
        """A probe was answered with something else than a status."""
        self._enter(replica, ReplicaState.DOWN, reason)

    def suspect(self, replica: Replica, reason: str) -> None:
        """A request met a broken connection or a refusal: ask the server before it gets more."""
        if replica.state is ReplicaState.READY:
            self._enter(replica, ReplicaState.SUSPECT, reason)

    def drain(self, replica: Replica) -> None:
        """The server said that it is going."""
        self._enter(replica, ReplicaState.DRAINING, "announced its shutdown")

    def _enter(self, replica: Replica, state: ReplicaState, reason: str) -> None:
        before = replica.state
        replica.state, replica.reason, replica.proofs = state, reason, 0
        if state is before:
            return
        replica.since = self._clock()
        if state is ReplicaState.READY and before is not ReplicaState.SUSPECT:
            replica.breaker.reset()  # a new process: what is known of the old one is void
        self._notify(replica)

    def _index(self) -> None:
        self._by_model = {}
        for replica in self:
            if replica.model_id is not None:
                self._by_model.setdefault((replica.kind, replica.model_id), []).append(replica)

    def _notify(self, replica: Replica) -> None:
        for listener in self.listeners:
            listener(replica)
