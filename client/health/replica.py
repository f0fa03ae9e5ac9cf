"""One server, as the gateway knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from yarl import URL

from client.engines.engine import Engine
from client.engines.registry import OTHER
from client.health.breaker import Breaker
from client.health.load import Load
from client.health.report import ReplicaKind, Report
from client.health.terms import UNTOLD_TERMS, Terms
from utils.config import Secret


class ReplicaState(StrEnum):
    """Only `READY` is given work."""

    UNKNOWN = "unknown"
    READY = "ready"
    SUSPECT = "suspect"
    LOADING = "loading"
    DRAINING = "draining"
    DOWN = "down"


@dataclass(eq=False, slots=True)
class Replica:
    """One server."""

    kind: ReplicaKind
    url: str
    joined: Literal["config", "event"]
    since: float
    """When the state was entered."""
    state: ReplicaState = ReplicaState.UNKNOWN
    reason: str = "not probed yet"
    terms: Terms = field(init=False)
    """Which requests it takes; servers that take the same share one object."""
    model_id: str | None = None
    """Kept while the server is away, so that its model stays known."""
    model_aliases: tuple[str, ...] = ()
    """Further names of the model."""
    report: Report | None = None
    """What it said last."""
    report_at: float = 0.0
    heard_at: float = 0.0
    """When bytes of an answer last came."""
    served_at: float = 0.0
    """When bytes of a good answer last came."""
    load: Load = field(default_factory=Load)
    breaker: Breaker = field(default_factory=Breaker)
    proofs: int = 0
    """Good probes in a row since it was down."""
    misses: int = 0
    """Probes in a row without an answer."""
    engine: Engine | None = None
    """What it is where it is not a server of ours."""
    probed_picks: int = 0
    """`load.picks` at the last probe: without more since and without leases the server is idle."""
    authorization: str | None = field(default=None, repr=False)
    """The ``Authorization`` header for the key, or user name and password, of its configured URL."""
    _urls: dict[str, URL] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.terms = UNTOLD_TERMS[self.kind]
        if self.kind == "openai_compatible":
            self.engine = OTHER

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names of its model; none before its first status."""
        return () if self.model_id is None else (self.model_id, *self.model_aliases)

    @property
    def fingerprint(self) -> str | None:
        """Identifies its weights; None: not reported."""
        return None if self.report is None else self.report.fingerprint

    def has_weights(self, fingerprint: str | None) -> bool:
        """Whether its weights are those of `fingerprint`; true where either is unknown."""
        return None in (fingerprint, self.fingerprint) or fingerprint == self.fingerprint

    def url_of(self, route: str) -> URL:
        """Where `route` is on this server."""
        url = self._urls.get(route)
        if url is None:
            url = self._urls[route] = URL(self.url + route)
        return url

    def credentials(self, server_key: Secret | None) -> str | None:
        """The ``Authorization`` header with which it is called: its own, or the configured `server_key`,
        which is for servers of ours."""
        if self.authorization is None and self.engine is None and server_key is not None:
            return f"Bearer {server_key.get_secret_value()}"
        return self.authorization

    def may_return(self, now: float, patience: float) -> bool:
        """Whether it is worth waiting for this replica to take work (again)."""
        away = self.state in (ReplicaState.DOWN, ReplicaState.UNKNOWN, ReplicaState.DRAINING)
        return not away or now - self.since < patience
