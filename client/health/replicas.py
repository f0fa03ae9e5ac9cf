"""What the gateway knows of each server. State only: `heartbeat` and `relay` do the I/O.

A replica's life::

    UNKNOWN ──ready──► READY ◄──ready── SUSPECT     a broken connection: no new work until probed
                         └──────broken────►
    any ──refused, hung, unfit──► DOWN ──ready twice──► READY
    LOADING, DRAINING             what the server says of itself
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from client.health.load import DEFAULT_SLOTS
from client.health.replica import Replica, ReplicaState
from client.health.report import ReplicaKind, Report
from client.health.terms import UNTOLD_TERMS, KnownTerms, Terms
from protocol.status import ServerState
from utils.addresses import Address

logger = logging.getLogger(__name__)

PROOFS = 2
"""Good probes in a row after which a lost server is trusted again."""
MISSES = 2
"""Probes in a row without an answer after which a server counts as hung."""


_REPORTED = {
    ServerState.LOADING: ReplicaState.LOADING,
    ServerState.READY: ReplicaState.READY,
    ServerState.DRAINING: ReplicaState.DRAINING,
    ServerState.FAILED: ReplicaState.DOWN,
}


class Registry:
    """All replicas, found by address and by model, and the rules by which their state changes.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._replicas: dict[tuple[ReplicaKind, str], Replica] = {}
        self._by_model: dict[tuple[ReplicaKind, str], list[Replica]] = {}
        self._known_terms = KnownTerms()
        self._sole_terms: dict[str, Terms] = {}
        self._reported_pairs: set[frozenset[str]] = set()
        self.listeners: list[Callable[[Replica], None]] = []
        """Called after a replica came, went or changed its state."""

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas.values())

    def __contains__(self, replica: Replica) -> bool:
        return self.get(replica.kind, replica.url) is replica

    def get(self, kind: ReplicaKind, url: str) -> Replica | None:
        return self._replicas.get((kind, url))

    def serving(self, kind: ReplicaKind, model: str) -> Sequence[Replica]:
        """Replicas of `model`, in whatever state."""
        return self._by_model.get((kind, model), ())

    def sole_terms(self, model: str) -> Terms | None:
        """The terms of every replica that may be of `model`, where they are the same: then it makes no
        difference whether they let a request in, as there is none else to give it to."""
        return self._sole_terms.get(model)

    def joined_count(self) -> int:
        """How many servers joined by an event."""
        return sum(replica.joined == "event" for replica in self)

    def models(self, serves: Callable[[Replica], bool] = lambda _: True) -> list[str]:
        """Names of the models of live servers, of those alone for which `serves` is true."""
        live = (replica for replica in self if replica.state is ReplicaState.READY and serves(replica))
        return sorted({name for replica in live for name in replica.model_names})

    def max_length(self, model: str) -> int | None:
        """Tokens of prompt and answer together that every live server of `model` takes; None: none says."""
        serving = (
            r for kind in UNTOLD_TERMS for r in self.serving(kind, model) if r.state is ReplicaState.READY
        )
        lengths = [r.report.max_length for r in serving if r.report and r.report.max_length]
        return min(lengths, default=None)

    def has_other_weights(self, replica: Replica) -> bool:
        """Whether a server with the same model id reported another fingerprint than `replica`."""
        known = {peer.fingerprint for peer in self if peer.model_id == replica.model_id and peer.fingerprint}
        return replica.fingerprint is not None and len(known) > 1

    # who there is

    def configure(self, servers: Iterable[tuple[ReplicaKind, str]]) -> None:
        """Make the configured replicas those at `servers`; ones that stay keep all their state."""
        wanted = set(servers)
        for replica in list(self):
            if replica.joined == "config" and (replica.kind, replica.url) not in wanted:
                self.remove(replica)
        for kind, url in sorted(wanted):
            self.join(kind, url, "config")

    def join(self, kind: ReplicaKind, url: str, joined: Literal["config", "event"]) -> Replica:
        """The replica at `url`, added if it is new."""
        replica = self.get(kind, url)
        if replica is None:
            replica = Replica(kind, url, joined, since=self._clock())
            self._replicas[kind, url] = replica
            self._index()
            self._notify(replica)
        elif joined == "config":
            replica.joined = "config"
        replica.authorization = url.authorization if isinstance(url, Address) else None
        return replica

    def remove(self, replica: Replica) -> None:
        """Forget `replica`: no new work; what it is doing may finish."""
        del self._replicas[replica.kind, replica.url]
        self._index()
        self._notify(replica)

    # what happens to it

    def reported(self, replica: Replica, report: Report) -> None:
        """A probe was answered with `report`."""
        now = self._clock()
        replica.report, replica.report_at, replica.misses = report, now, 0
        if report.kind != replica.kind:
            self._enter(replica, ReplicaState.DOWN, f"is a {report.kind} server")
            return
        replica.engine = report.engine
        if report.pending_tokens is not None:
            replica.load.report_tokens(report.pending_tokens, now)
        if report.requests is not None:
            replica.load.report_requests(report.requests, now)
        replica.load.slots = report.slots or DEFAULT_SLOTS
        terms = self._known_terms.of(replica.kind, report.accepts)
        if report.accepts is None and _REPORTED[report.state] is ReplicaState.LOADING:
            terms = replica.terms  # it tells once it is ready; requests wait for it as for the one before
        names = report.names
        if names and (names != replica.model_names or terms is not replica.terms):
            replica.model_id, *aliases = names
            replica.model_aliases, replica.terms = tuple(aliases), terms
            self._index()
        self._compare_weights(replica)
        state = _REPORTED[report.state]
        if state is ReplicaState.READY and replica.state is ReplicaState.DOWN:
            replica.proofs += 1
            if replica.proofs < PROOFS:
                return
        self._enter(replica, state, f"reports {report.state}")

    def _compare_weights(self, replica: Replica) -> None:
        """Log once that servers with the same model id have different weights."""
        for peer in self if replica.fingerprint else ():
            if peer.model_id != replica.model_id or peer.fingerprint in (None, replica.fingerprint):
                continue
            pair = frozenset([str(peer.fingerprint), str(replica.fingerprint)])
            if pair not in self._reported_pairs:
                self._reported_pairs.add(pair)
                logger.warning(
                    "%s and %s serve %r with different weights (%s, %s): "
                    "no stream goes on from one to the other",
                    *(peer.url, replica.url, replica.model_id, peer.fingerprint, replica.fingerprint),
                )

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
            for name in dict.fromkeys(replica.model_names):
                self._by_model.setdefault((replica.kind, name), []).append(replica)
        terms: dict[str, set[Terms]] = {}
        unidentified = {replica.terms for replica in self if replica.model_id is None}
        for (_, model), replicas in self._by_model.items():
            terms.setdefault(model, set(unidentified)).update(replica.terms for replica in replicas)
        self._sole_terms = {model: next(iter(found)) for model, found in terms.items() if len(found) == 1}

    def _notify(self, replica: Replica) -> None:
        for listener in self.listeners:
            listener(replica)
