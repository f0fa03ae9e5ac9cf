"""Authentication: keys of clients, and the tokens of servers and of Prometheus."""

from __future__ import annotations

from dataclasses import dataclass, field

from client.config import GatewayConfig
from protocol.errors import unauthorized
from utils.keys import NEEDED, check_key


@dataclass(frozen=True, slots=True)
class Caller:
    """The client that sent a request."""

    key: str | None = field(repr=False)
    """What tells it from others; None where there are no keys, so that all are one."""
    max_priority: int
    tenant: str | None = None
    """Whom the key belongs to, where the configuration says so."""


def caller(authorization: bytes, config: GatewayConfig) -> Caller:
    """The client whose key the ``Authorization`` header of a request holds.

    Raises:
        ApiError: 401 where keys are configured and it is none of them.
    """
    if not config.api_keys:
        return Caller(None, config.max_priority)
    place = config.keys.find(authorization)
    if place is None:
        raise unauthorized(NEEDED)
    found = config.api_keys[place]
    limit = config.max_priority if found.max_priority is None else found.max_priority
    return Caller(found.key.get_secret_value(), limit, found.tenant)


def check_metrics_key(authorization: bytes, config: GatewayConfig) -> None:
    """Check that a request may read the metrics.

    Raises:
        ApiError: 401 where the `metrics_token` or keys are configured and it holds none of them.
    """
    if config.keys.find(authorization) is not None:
        return
    if config.metrics_token is not None:
        check_key(authorization, config.metrics_token)
    elif config.api_keys:
        raise unauthorized(NEEDED)
