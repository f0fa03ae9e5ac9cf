"""Keys of ``client_config.json`` about which server gets a request, and how long it waits for one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from client.routing.policies import POLICIES, least_wait
from utils.choices import one_of
from utils.config import ConfigModel


class RoutingConfig(ConfigModel):
    """Which server gets a request, and how long it waits for one."""

    balancing_policy: Annotated[str, one_of(POLICIES)] = Field(
        least_wait.__name__, description="how one of several servers is chosen"
    )
    max_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        60, description="longest wait of one request for a server to come back, loading included"
    )
    prefix_affinity_slack: Annotated[float, Field(ge=0)] = Field(
        0.25,
        description="share of its slots by which a server may be fuller than the emptiest one and still "
        "get a prompt whose beginning it knows",
    )
    max_waiting_requests: Annotated[int, Field(ge=0)] = Field(
        1024, description="how many requests may wait for a replica to come back"
    )
    replica_wait_seconds: Annotated[float, Field(ge=0)] = Field(
        15, description="how long after its loss a server is hoped to come back, and requests wait for it"
    )
