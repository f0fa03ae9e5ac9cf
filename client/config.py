"""What an operator sets in ``client_config.json``."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, SecretStr, model_validator

from protocol.status import ServiceKind
from utils.addresses import check_endpoint, check_service_url
from utils.config import ConfigModel, Secret

Seconds = Annotated[float, Field(gt=0)]
Text = TypeVar("Text", str, SecretStr)

ServerUrl = Annotated[str, AfterValidator(check_service_url)]
EndpointUrl = Annotated[str, AfterValidator(check_endpoint)]


def _check_header(value: Text) -> Text:
    text = value if isinstance(value, str) else value.get_secret_value()
    if re.fullmatch("[!-~]*", text) is None:
        raise ValueError("only visible ASCII characters can be sent as a header")
    return value


class OpenAIJumperConfig(ConfigModel):
    """One account at OpenAI or at any endpoint that speaks its API."""

    api_key: Annotated[Secret, AfterValidator(_check_header)]
    org_id: Annotated[str, AfterValidator(_check_header)] | None = None
    base_url: EndpointUrl | None = Field(None, description="default: the API of OpenAI")
    models: tuple[str, ...] | None = Field(
        None, description="model ids routed to it on /v1/*; without them it serves /chat_completion/v1 alone"
    )


class GatewayConfig(ConfigModel):
    """Servers and accounts behind the gateway, and its limits; only the first four are commonly set."""

    continuous_batching_server_urls: tuple[ServerUrl, ...] = ()
    static_batching_server_urls: tuple[ServerUrl, ...] = ()
    openai_jumper_configs: tuple[OpenAIJumperConfig, ...] = ()
    heart_beat_interval_seconds: Seconds = 600

    # who may come in
    api_keys: tuple[Secret, ...] = Field((), description="keys that clients must send; empty: open to all")
    event_token: Secret | None = Field(None, description="token with which servers may join and drain")
    max_body_bytes: Annotated[int, Field(gt=0)] = 16 * 2**20
    max_concurrent_requests: Annotated[int, Field(gt=0)] = 4096
    max_waiting_requests: Annotated[int, Field(ge=0)] = Field(
        1024, description="how many of these may wait for a replica to come back"
    )

    # how long to wait
    connect_timeout_seconds: Seconds = 2
    first_byte_timeout_seconds: Seconds = 600
    idle_timeout_seconds: Seconds = Field(300, description="longest silence within an answer")
    client_timeout_seconds: Seconds = Field(60, description="longest pause of a client, sending or reading")
    drain_timeout_seconds: Seconds = Field(
        50,
        description="how long requests in flight have after SIGTERM; less than gunicorn's graceful_timeout",
    )

    # health
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

    # failover
    max_attempts: Annotated[int, Field(ge=1)] = Field(
        20, description="of one request, or of one answer since it last came further"
    )
    retry_ratio: Annotated[float, Field(ge=0)] = Field(
        0.2, description="retries allowed per request on average; bursts of 100 are free"
    )
    replica_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        15, description="how long after its loss a server is hoped to come back, and requests wait for it"
    )
    stream_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        60, description="the same where an answer was cut that only waits for somebody to continue it"
    )
    max_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        60, description="longest wait of one request for a server to come back, loading included"
    )
    prefix_affinity_slack: Annotated[float, Field(ge=0)] = Field(
        0.25,
        description="share of its slots by which a server may be fuller than the emptiest one and still "
        "get a prompt whose beginning it knows",
    )

    @model_validator(mode="after")
    def _check(self) -> GatewayConfig:
        urls = [*self.continuous_batching_server_urls, *self.static_batching_server_urls]
        if twice := {url for url in urls if urls.count(url) > 1}:
            raise ValueError(f"server listed twice: {', '.join(sorted(twice))}")
        return self

    def servers(self) -> list[tuple[ServiceKind, str]]:
        """(kind, url) of every configured server."""
        batching: list[tuple[ServiceKind, tuple[ServerUrl, ...]]] = [
            ("continuous_batching", self.continuous_batching_server_urls),
            ("static_batching", self.static_batching_server_urls),
        ]
        return [(kind, url) for kind, urls in batching for url in urls]


class Settings:
    """The configuration in use; a reload puts another one in its place, whole."""

    __slots__ = ("config",)

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
