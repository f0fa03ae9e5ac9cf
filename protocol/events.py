"""Events by which a server announces itself to the gateway (``/event/*``)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from protocol.status import ServiceKind


class ServerEvent(BaseModel):
    """A server at `url` came up, or is about to go (by which route says which)."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=2048)]
    service: ServiceKind
    model_id: Annotated[str, Field(max_length=1024)]


class EventAccepted(BaseModel):
    """The gateway's answer to an event."""

    accepted: bool = True
    trusted: bool = True
    """False where the gateway has no `event_token`: then only configured servers get work."""
