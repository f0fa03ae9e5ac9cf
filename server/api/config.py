"""What the configurations of both servers share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from utils.access_log import AccessLogConfig
from utils.bodies import BodyLimits
from utils.config import Secret
from utils.cross_site import SiteConfig


class HttpConfig(BodyLimits, SiteConfig, AccessLogConfig):
    """The keys for whatever speaks HTTP."""

    event_token: Secret | None = None
    """Shared secret for announcing this server to the gateway."""
    server_key: Secret | None = None
    """Key that callers must send; the gateway's key of the same name."""


class ApiConfig(HttpConfig):
    """The keys of a whole server."""

    model_id: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Name under which the model is served; by default that of its directory."""
    generation_config: Literal["auto", "none"] = "auto"
    """What requests to ``/v1/*`` leave out of temperature, top_k, top_p, min_p and repetition_penalty: auto:
    as the checkpoint's ``generation_config.json`` has it; none: as OpenAI has it."""
    model_aliases: tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] = ()
    """Further names under which the model is served."""
