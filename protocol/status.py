"""What a server reports: ``/status``, which is also its heartbeat."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from protocol.accepts import Accepts

AnnouncementState = Literal["pending", "accepted", "unconfirmed", "refused", "failed"]
ServiceKind = Literal["continuous_batching", "static_batching"]


Count = Annotated[int, Field(ge=0, le=2**53)]
"""Within what a float holds exactly: gateways reckon with it."""
Measure = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


ModelName = Annotated[str, Field(min_length=1, max_length=4096)]


class ServerState(StrEnum):
    """State of a server; only `READY` takes requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class ServerLoad(BaseModel):
    """What a server is doing at this moment."""

    running: Count = 0
    waiting: Count = 0
    swapped: Count = 0
    pending_tokens: Count = 0
    """Work not yet done, in the unit of the gateway's leases (`protocol.work.expected_tokens`)."""
    kv_cache_usage: Measure = 0.0
    """Share of cache blocks in use, 0 to 1."""
    tokens_per_second: Measure = 0.0
    """Generated tokens per second over the last seconds."""


class ServerCapacity(BaseModel):
    """What a server can take."""

    max_beams: Annotated[int, Field(ge=1, le=2**53)]
    max_waiting: Count
    model_max_length: Annotated[int, Field(ge=1)]


class Announcement(BaseModel):
    """What the gateway at a server's ``--client_url`` said when the server asked to join."""

    gateway: str
    server: str
    """The URL that the server gave as its own."""
    state: AnnouncementState
    """`unconfirmed`: the gateway works with the server if it is configured, and does not say so;
    `failed`: no gateway answered. Whatever the answer, the server asks again."""
    problem: str | None = None
    """Why it was not accepted."""


class Readiness(BaseModel):
    """Answer of ``/ready`` on a server that is."""

    status: Literal["ready"] = "ready"
    announcement: Announcement | None = None


class ServerStatus(BaseModel):
    """Answer of ``/status`` on a server."""

    service: ServiceKind
    state: ServerState
    model_id: ModelName
    model_aliases: Annotated[list[ModelName], Field(max_length=64)] = []
    """Further names under which requests may name the model."""
    version: Annotated[str, Field(max_length=256)]
    uptime_seconds: Measure
    problem: Annotated[str, Field(max_length=4096)] | None = None
    """What keeps the server from answering, in one line; null where nothing does."""
    load: ServerLoad
    capacity: ServerCapacity | None = None
    announcement: Announcement | None = None
    """None where the server announces itself to no gateway."""
    accepts: Accepts | None = None
    """Which requests it takes; None until the model is loaded, and from servers that do not say."""
    fingerprint: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """What tells its checkpoint from others, equal on servers with the same weights and tokenizer; None until
    the model is loaded, and from servers that do not say."""
    capabilities: dict[str, Any] = {}
    """What was chosen at load and why, e.g. ``{"attention": {"name": "torch", "reason": "…"}}``."""
    details: dict[str, Any] = {}
    """Counters for people: cache, swaps, preemptions, restarts."""
