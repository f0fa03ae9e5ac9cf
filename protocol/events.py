"""Events by which a server announces itself to the gateway (``/event/*``)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from protocol.status import ServiceKind


class ServerEvent(BaseModel):
    """A server at `url` came up, or is about to go (by which route says which)."""

    model_config = ConfigDict(extra="forbid")

    url: str
    service: ServiceKind
    model_id: str


class EventAccepted(BaseModel):
    """The gateway's answer to an event."""

    accepted: bool = True
