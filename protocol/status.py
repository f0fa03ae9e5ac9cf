"""What a server tells of itself: ``/status``, which is also its heartbeat."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel

ServiceKind = Literal["continuous_batching", "static_batching"]


class ServerState(StrEnum):
    """Life of a server; only `READY` takes requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class ServerLoad(BaseModel):
    """What a server is doing at this moment."""

    running: int = 0
    waiting: int = 0
    swapped: int = 0
    pending_tokens: int = 0
    """Work not yet done, in the unit of the gateway's leases (`protocol.work.expected_tokens`)."""
    kv_cache_usage: float = 0.0
    """Share of cache blocks in use, 0 to 1."""
    tokens_per_second: float = 0.0
    """Generated tokens per second over the last seconds."""


class ServerCapacity(BaseModel):
    """What a server can take."""

    max_beams: int
    max_waiting: int
    model_max_length: int


class ServerStatus(BaseModel):
    """Answer of ``/status`` on a server."""

    service: ServiceKind
    state: ServerState
    model_id: str
    version: str
    uptime_seconds: float
    load: ServerLoad
    capacity: ServerCapacity | None = None
    capabilities: dict[str, Any] = {}
    """What was chosen at load and why, e.g. ``{"attention": {"name": "torch", "reason": "…"}}``."""
    details: dict[str, Any] = {}
    """Counters for people: cache, swaps, preemptions, restarts."""
