"""The gateway's ``/status``, for people, programs and its web page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from client.accounts.account import Account
from client.engines.answers import EngineLoad
from client.gateway import Gateway
from client.health.breaker import BreakerState
from client.health.replica import Replica, ReplicaState
from client.health.replicas import Registry
from client.health.report import ReplicaKind
from protocol import __version__
from protocol.accepts import Accepts
from protocol.status import ServerCapacity, ServerLoad


class ReplicaStatus(BaseModel):
    """One server as the gateway sees it."""

    url: str
    kind: ReplicaKind
    engine: str | None
    """Which engine it is, where it is not a server of ours."""
    joined: Literal["config", "event"]
    state: ReplicaState
    reason: str
    seconds_in_state: float
    model_id: str | None
    breaker: BreakerState
    requests_in_flight: int
    """Requests of this gateway that it works on."""
    leased_tokens: int
    """Work that this gateway still expects of it."""
    expected_tokens: float
    """The same, corrected by its own reports: what balancing goes by."""
    load: ServerLoad | EngineLoad | None
    """Its own report of `seconds_since_report` ago; null: it does not say."""
    capacity: ServerCapacity | None
    accepts: Accepts | None
    """Which requests it takes, as it reports; null: not reported."""
    fingerprint: str | None
    """Identifies its weights; null: not reported."""
    other_weights: bool
    """Another server with the same model id reported another fingerprint: streams are not resumed across the
    two."""
    version: str | None
    seconds_since_report: float | None


class JumperStatus(BaseModel):
    """One OpenAI account; keys are never shown."""

    name: str
    models: Sequence[str] | None
    available: bool
    resting_seconds: float
    tokens_used: int
    requests_in_flight: int
    last_error: str | None


class RequestCounts(BaseModel):
    """Completion requests since the start."""

    received: int
    finished: int
    in_flight: int
    waiting: int
    """In flight, without a server that could take them."""
    retries: int
    resumed_streams: int
    generated_tokens: int


class ConfigStatus(BaseModel):
    """The configuration in use."""

    path: str | None
    loads: int
    """How often it was (re)loaded."""
    error: str | None
    """Why the file as it stands now is not in use."""


class GatewayStatus(BaseModel):
    """Answer of ``/status`` on the gateway."""

    service: Literal["gateway"] = "gateway"
    state: Literal["ready", "draining"]
    version: str
    uptime_seconds: float
    config: ConfigStatus
    requests: RequestCounts
    balancing_policy: str
    """How a server is chosen for a request."""
    replicas: list[ReplicaStatus]
    openai_jumpers: list[JumperStatus]


def replica_status(replica: Replica, registry: Registry, now: float) -> ReplicaStatus:
    report = replica.report
    return ReplicaStatus(
        url=replica.url,
        kind=replica.kind,
        engine=None if replica.engine is None else replica.engine.name,
        joined=replica.joined,
        state=replica.state,
        reason=replica.reason,
        seconds_in_state=round(now - replica.since, 1),
        model_id=replica.model_id,
        breaker=replica.breaker.state(now),
        requests_in_flight=len(replica.load.leases),
        leased_tokens=replica.load.tokens,
        expected_tokens=round(replica.load.expected_tokens(now), 1),
        load=report.load if report else None,
        capacity=report.capacity if report else None,
        accepts=report.accepts if report else None,
        fingerprint=replica.fingerprint,
        other_weights=registry.has_other_weights(replica),
        version=report.version if report else None,
        seconds_since_report=round(now - replica.report_at, 1) if report else None,
    )


def jumper_status(account: Account, now: float) -> JumperStatus:
    rest = max(0.0, account.rests_until - now)
    return JumperStatus(
        name=account.name,
        models=account.config.models,
        available=not rest,
        resting_seconds=round(rest, 1),
        tokens_used=account.tokens_used,
        requests_in_flight=len(account.load.leases),
        last_error=account.last_error,
    )


def gateway_status(gateway: Gateway) -> GatewayStatus:
    now = gateway.clock()
    metrics = gateway.metrics
    return GatewayStatus(
        state="draining" if gateway.draining else "ready",
        version=__version__,
        uptime_seconds=round(now - gateway.started_at, 1),
        config=ConfigStatus(
            path=str(gateway.config_file.path) if gateway.config_file else None,
            loads=gateway.config_file.loads if gateway.config_file else 1,
            error=gateway.config_file.error if gateway.config_file else None,
        ),
        requests=RequestCounts(
            received=sum(metrics.received.values()),
            finished=sum(metrics.finished.values()),
            in_flight=len(gateway.deadlines.in_flight),
            waiting=gateway.router.waiting,
            retries=metrics.retries,
            resumed_streams=metrics.resumes,
            generated_tokens=metrics.tokens,
        ),
        balancing_policy=gateway.settings.config.balancing_policy,
        replicas=[replica_status(replica, gateway.registry, now) for replica in gateway.registry],
        openai_jumpers=[jumper_status(account, now) for account in gateway.jumpers],
    )
