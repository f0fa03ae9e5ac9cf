"""What an operator sets in ``client_config.json``."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from client.health.config import HealthConfig, Seconds
from client.health.joining import JoiningHost
from client.health.report import ReplicaKind
from client.routing.config import RoutingConfig
from protocol.completion import MAX_PRIORITY
from utils.access_log import AccessLogConfig
from utils.addresses import Address, check_endpoint, check_service_url
from utils.bodies import BodyLimits
from utils.config import ConfigModel, Secret
from utils.cross_site import SiteConfig
from utils.keys import Keys

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


Priority = Annotated[int, Field(ge=0, le=MAX_PRIORITY)]


class ApiKey(ConfigModel):
    """A key of clients and what they may do with it."""

    key: Secret
    max_priority: Priority | None = Field(
        None, description="highest `priority` of its requests; default: that of the gateway"
    )
    tenant: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="keys of one tenant reuse each other's cached prompts; default: each its own"
    )


def _key_alone(value: Any) -> Any:
    if isinstance(value, str):
        return {"key": value}
    if not isinstance(value, dict | ApiKey):
        raise PydanticCustomError("secret", "a key, or an object with 'key', 'max_priority' and 'tenant'")
    return value


class EngineServer(ConfigModel):
    """A server of an engine that is not ours."""

    url: ServerUrl
    api_key: Annotated[Secret, AfterValidator(_check_header)] | None = Field(
        None, description="key that the server asks for"
    )

    @model_validator(mode="after")
    def _check(self) -> EngineServer:
        if self.api_key is not None and self._login is not None:
            raise ValueError(f"{str(self.url)!r} has a user name: it cannot be sent beside the api_key")
        return self

    @property
    def address(self) -> Address:
        """Its URL, with what is sent there to be let in."""
        key = None if self.api_key is None else f"Bearer {self.api_key.get_secret_value()}"
        return Address(self.url, key or self._login)

    @property
    def _login(self) -> str | None:
        """What is sent for the user name of its URL."""
        return self.url.authorization if isinstance(self.url, Address) else None


def _url_alone(value: Any) -> Any:
    if isinstance(value, str):
        return {"url": value}
    if not isinstance(value, dict | EngineServer):
        raise PydanticCustomError("server", "a URL, or an object with 'url' and 'api_key'")
    return value


class GatewayConfig(RoutingConfig, HealthConfig, BodyLimits, SiteConfig, AccessLogConfig):
    """Servers and accounts behind the gateway, who may use it, and its limits."""

    continuous_batching_server_urls: tuple[ServerUrl, ...] = ()
    static_batching_server_urls: tuple[ServerUrl, ...] = ()
    openai_compatible_server_urls: tuple[Annotated[EngineServer, BeforeValidator(_url_alone)], ...] = Field(
        (), description="servers of vLLM, SGLang, llama.cpp and other engines with OpenAI's API"
    )
    openai_jumper_configs: tuple[OpenAIJumperConfig, ...] = ()

    # who may come in
    api_keys: tuple[Annotated[ApiKey, BeforeValidator(_key_alone)], ...] = Field(
        (), description="keys that clients must send, alone or with rights; empty: open to all"
    )
    metrics_token: Secret | None = Field(
        None, description="token that reads /metrics and nothing else; without it the API keys do"
    )
    max_priority: Priority = Field(0, description="highest `priority` that a request may ask for")
    event_token: Secret | None = Field(None, description="token with which servers may join and drain")
    joining_hosts: tuple[JoiningHost, ...] = Field(
        (),
        description="names, addresses and networks of servers that may join; "
        "empty: an address from which the server itself calls",
    )
    max_joined_servers: Annotated[int, Field(ge=0)] = Field(
        64, description="how many servers may have joined at a time"
    )
    max_concurrent_requests: Annotated[int, Field(gt=0)] = 4096

    # how long to wait
    first_byte_timeout_seconds: Seconds = 600
    idle_timeout_seconds: Seconds = Field(300, description="longest silence within an answer")
    client_timeout_seconds: Seconds = Field(60, description="longest pause of a client, sending or reading")
    drain_timeout_seconds: Seconds = Field(
        50,
        description="how long requests in flight have after SIGTERM; less than gunicorn's graceful_timeout",
    )

    # failover
    max_attempts: Annotated[int, Field(ge=1)] = Field(
        20, description="of one request, or of one answer since it last came further"
    )
    retry_ratio: Annotated[float, Field(ge=0)] = Field(
        0.2, description="retries allowed per request on average; bursts of 100 are free"
    )
    stream_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        60,
        description="the same as replica_wait_seconds, for an answer that was cut and waits to be continued",
    )

    @model_validator(mode="after")
    def _check(self) -> GatewayConfig:
        ours = [*self.continuous_batching_server_urls, *self.static_batching_server_urls]
        urls = [*ours, *(server.url for server in self.openai_compatible_server_urls)]
        if twice := {url for url in urls if urls.count(url) > 1}:
            raise ValueError(f"server listed twice: {', '.join(sorted(twice))}")
        for url in ours:
            if self.server_key is not None and isinstance(url, Address) and url.authorization is not None:
                raise ValueError(f"{str(url)!r} has a user name: it cannot be sent beside the server_key")
        return self

    @cached_property
    def keys(self) -> Keys:
        """The keys of `api_keys`, each at its place there."""
        return Keys([key.key for key in self.api_keys])

    def servers(self) -> list[tuple[ReplicaKind, str]]:
        """(kind, url) of every configured server."""
        batching: list[tuple[ReplicaKind, tuple[str, ...]]] = [
            ("continuous_batching", self.continuous_batching_server_urls),
            ("static_batching", self.static_batching_server_urls),
            ("openai_compatible", tuple(server.address for server in self.openai_compatible_server_urls)),
        ]
        return [(kind, url) for kind, urls in batching for url in urls]


class Settings:
    """The configuration in use; a reload puts another one in its place, whole."""

    __slots__ = ("config",)

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
