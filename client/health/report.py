"""What a server said of itself when it was last asked, whatever kind of server it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from client.engines.answers import EngineLoad
from client.engines.engine import About, Engine
from protocol.accepts import Accepts
from protocol.status import ServerCapacity, ServerLoad, ServerState, ServerStatus, ServiceKind

ReplicaKind = ServiceKind | Literal["openai_compatible"]
"""Our servers by their strategy, and engines that are not ours."""


@dataclass(frozen=True, slots=True)
class Report:
    """What balancing and `/status` take from the answers of a server."""

    kind: ReplicaKind
    state: ServerState
    names: tuple[str, ...] = ()
    """All names of its models, the main one first; empty: not told."""
    version: str | None = None
    load: ServerLoad | EngineLoad | None = None
    requests: int | None = None
    """Running and waiting there; None: not told."""
    pending_tokens: int | None = None
    """As `ServerLoad` has it; None: not told."""
    slots: int | None = None
    """Rows that it decodes at once; None: not told."""
    max_length: int | None = None
    """Tokens of prompt and answer together that it takes."""
    capacity: ServerCapacity | None = None
    """The two with what else a server of ours tells of itself."""
    accepts: Accepts | None = None
    fingerprint: str | None = None
    engine: Engine | None = None
    """None: a server of ours."""
    about: About = field(default_factory=About)
    """What the engine told beside its models and its load."""

    @classmethod
    def of(cls, status: ServerStatus) -> Report:
        """What a server of ours tells in its ``/status``."""
        load, capacity = status.load, status.capacity
        return cls(
            kind=status.service,
            state=status.state,
            names=(status.model_id, *status.model_aliases),
            version=status.version,
            load=load,
            requests=load.running + load.waiting + load.swapped,
            pending_tokens=load.pending_tokens,
            slots=capacity.max_beams if capacity else None,
            max_length=capacity.model_max_length if capacity else None,
            capacity=capacity,
            accepts=status.accepts,
            fingerprint=status.fingerprint,
        )
