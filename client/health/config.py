"""Keys of ``client_config.json`` about how servers are called and asked how they are."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from utils.config import ConfigModel, Secret

Seconds = Annotated[float, Field(gt=0)]


class HealthConfig(ConfigModel):
    """How servers are called and asked how they are."""

    heart_beat_interval_seconds: Seconds = 600
    heart_beat_timeout_seconds: Seconds = 3
    busy_heart_beat_interval_seconds: Seconds = Field(
        2, description="interval for a server while it works for this gateway"
    )
    recovery_probe_max_seconds: Seconds = Field(
        5, description="longest pause between probes of a lost server"
    )
    forget_joined_seconds: Seconds = Field(
        600, description="how long a server that joined by an event is asked after it was lost"
    )
    connect_timeout_seconds: Seconds = 2
    server_key: Secret | None = Field(None, description="key that is sent to the servers")
