"""All routes but the completions: health, status, models, events, cancellation, the web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from client.gateway import Gateway, shutting_down
from client.health.joining import joining_url
from client.http.exposition import metrics_registry
from client.http.keys import caller
from client.http.status import GatewayStatus, gateway_status
from client.metrics.history import Point
from protocol import routes
from protocol.errors import cancelled, not_found, queue_full, unprocessable
from protocol.events import EventAccepted, ServerEvent
from protocol.models import ModelCard, ModelList
from utils.addresses import check_service_url
from utils.http_errors import document_errors
from utils.keys import check_key
from utils.pages import add_page

PAGE = Path(__file__).parents[1] / "page"
HISTORY = "/status/history"

Authorization = Annotated[str, Header()]


def open_router(gateway: Gateway) -> APIRouter:
    """Routes that need no key: probes and the page, which shows nothing without one."""
    router = APIRouter(tags=["service"])

    @router.get(routes.HEALTH)
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @router.get(routes.READY, responses=document_errors(503))
    async def ready() -> dict[str, str]:
        """Readiness: completion requests are taken."""
        if gateway.draining:
            raise shutting_down()
        return {"status": "ready"}

    add_page(router, "/", PAGE, "/page")
    return router


def metrics_router(gateway: Gateway) -> APIRouter:
    """The metrics, which tell servers, models and accounts."""
    router = APIRouter(tags=["service"])
    registry = metrics_registry(gateway)
    responses: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}

    @router.get(routes.METRICS, response_class=Response, responses=responses | document_errors(401))
    async def metrics() -> Response:
        """All metrics in Prometheus' text format; needs `metrics_token` or a key where there are any."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


def keyed_router(gateway: Gateway) -> APIRouter:
    """Routes that need one of the API keys, where there are any (`gate.Gate` sees to it)."""
    router = APIRouter(tags=["gateway"], responses=document_errors(401))
    registry, jumpers = gateway.registry, gateway.jumpers

    @router.get(routes.STATUS)
    async def status() -> GatewayStatus:
        """What the gateway knows of its servers and accounts, and what it is doing."""
        return gateway_status(gateway)

    @router.get(HISTORY)
    async def history() -> list[Point]:
        """Latency and throughput of the last minutes, oldest first."""
        return gateway.metrics.history.points()

    @router.get(routes.OPENAI_MODELS)
    async def models() -> ModelList:
        """The models that a live server or an account serves."""
        local = registry.models()
        remote = [model for model in jumpers.models() if model not in local]
        return ModelList(
            data=[ModelCard(id=model, max_model_len=registry.max_length(model)) for model in local]
            + [ModelCard(id=model, owned_by="openai") for model in remote]
        )

    @router.get(routes.OPENAI_MODELS + "/{model:path}", responses=document_errors(404))
    async def one_model(model: str) -> ModelCard:
        """One of these models."""
        return (await models()).card(model)

    @router.get(routes.CB_AVAILABLE_MODELS)
    async def cb_models() -> list[str]:
        """Models with a live continuous-batching server."""
        return registry.models(lambda replica: replica.kind == "continuous_batching")

    @router.get(routes.SB_AVAILABLE_MODELS)
    async def sb_models() -> list[str]:
        """Models with a live static-batching server."""
        return registry.models(lambda replica: replica.kind == "static_batching")

    @router.get(routes.OPENAI_JUMPER_IS_AVAILABLE)
    async def jumper_is_available() -> str:
        """``"1"`` if an OpenAI account can take a request now, otherwise ``"0"``."""
        return "1" if jumpers.available() else "0"

    @router.delete(routes.REQUESTS + "/{request_id:path}", status_code=204, responses=document_errors(404))
    async def cancel(request_id: str, authorization: Authorization = "") -> None:
        """Cancel the requests that were sent with this ``x-request-id`` and the same key."""
        sender = caller(authorization.encode("latin-1"), gateway.settings.config)
        deadlines = gateway.deadlines.of(request_id, sender.key)
        if not deadlines:
            raise not_found(f"no request {request_id!r} is being answered")
        for deadline in deadlines:
            deadline.give_up(cancelled())

    return router


def event_router(gateway: Gateway) -> APIRouter:
    """Servers announce themselves.

    With an `event_token`, who presents it is believed: unknown servers join where they may, going
    ones get no more work. Without one an event is only a hint to ask a configured server how it is,
    and the answer does not say whether there is such a server.
    """
    router = APIRouter(tags=["events"], responses=document_errors(401, 403, 422))
    registry = gateway.registry

    def trusted(authorization: str) -> bool:
        """Whether the token was presented; False where none is configured."""
        token = gateway.settings.config.event_token
        if token is not None:
            check_key(authorization.encode("latin-1"), token)
        return token is not None

    def hint(event: ServerEvent) -> EventAccepted:
        if (replica := registry.get(event.service, server_url(event.url))) is not None:
            gateway.heartbeats.probe_now(replica)
        return EventAccepted(trusted=False)

    @router.post(routes.EVENT_SERVER_STARTUP, responses=document_errors(429))
    async def startup(
        event: ServerEvent, request: Request, authorization: Authorization = ""
    ) -> EventAccepted:
        """A server came up."""
        if not trusted(authorization):
            return hint(event)
        replica = registry.get(event.service, server_url(event.url))
        if replica is not None:
            gateway.heartbeats.probe_now(replica)
            return EventAccepted()
        config = gateway.settings.config
        url = joining_url(event.url, request.client.host if request.client else "", config.joining_hosts)
        if registry.joined_count() >= config.max_joined_servers:
            message = f"{config.max_joined_servers} servers have joined already ('max_joined_servers')"
            raise queue_full(message, retry_after=60)
        registry.join(event.service, url, "event")
        return EventAccepted()

    @router.post(routes.EVENT_SERVER_SHUTDOWN, responses=document_errors(404))
    async def shutdown(event: ServerEvent, authorization: Authorization = "") -> EventAccepted:
        """A server is about to go."""
        if not trusted(authorization):
            return hint(event)
        replica = registry.get(event.service, server_url(event.url))
        if replica is None:
            raise not_found(f"{server_url(event.url)} is not a server of this gateway")
        registry.drain(replica)  # it may still call itself ready for a moment: ask later
        return EventAccepted()

    return router


def server_url(url: str) -> str:
    """The URL of an event in the form in which the configuration has it."""
    try:
        return check_service_url(url)
    except ValueError as error:
        raise unprocessable(f"url: {error}", param="url") from None
