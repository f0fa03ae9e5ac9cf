"""All routes but the completions: health, status, models, events, cancellation, the web page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from fastapi.responses import FileResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from client.exposition import metrics_registry
from client.gateway import Gateway, shutting_down
from client.history import Point
from client.keys import check_key
from client.status import GatewayStatus, gateway_status
from protocol import routes
from protocol.errors import ErrorResponse, cancelled, forbidden, not_found, unprocessable
from protocol.events import EventAccepted, ServerEvent
from protocol.openai import ModelCard, ModelList
from utils.addresses import check_service_url

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'self'",
    "x-content-type-options": "nosniff",
}
HISTORY = "/status/history"

Authorization = Annotated[str, Header()]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route that may fail with these."""
    return {status: {"model": ErrorResponse} for status in statuses}


def open_router(gateway: Gateway) -> APIRouter:
    """Routes that need no key: probes, metrics and the page."""
    router = APIRouter(tags=["service"])
    registry = metrics_registry(gateway)

    @router.head(routes.HEALTH, include_in_schema=False)
    @router.get(routes.HEALTH)
    async def health() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @router.head(routes.READY, include_in_schema=False)
    @router.get(routes.READY, responses=errors(503))
    async def ready() -> dict[str, str]:
        """Readiness: completion requests are taken."""
        if gateway.draining:
            raise shutting_down()
        return {"status": "ready"}

    @router.get(routes.METRICS, response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """All metrics in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def page(path: str, name: str) -> None:
        @router.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
        async def file() -> FileResponse:
            return FileResponse(PAGE / name, headers=PAGE_HEADERS)

    page("/", "index.html")
    for asset in sorted(PAGE.iterdir()):
        page(f"/page/{asset.name}", asset.name)
    return router


def keyed_router(gateway: Gateway) -> APIRouter:
    """Routes that need one of the API keys, where there are any."""

    async def key(authorization: Authorization = "") -> None:
        check_key(authorization.encode("latin-1"), gateway.settings.config.api_keys)

    router = APIRouter(tags=["gateway"], dependencies=[Depends(key)], responses=errors(401))
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
        local = registry.models(["continuous_batching", "static_batching"])
        remote = [model for model in jumpers.models() if model not in local]
        return ModelList(
            data=[ModelCard(id=model) for model in local]
            + [ModelCard(id=model, owned_by="openai") for model in remote]
        )

    @router.get(routes.OPENAI_MODELS + "/{model:path}", responses=errors(404))
    async def one_model(model: str) -> ModelCard:
        """One of these models."""
        return (await models()).card(model)

    @router.get(routes.CB_AVAILABLE_MODELS)
    async def cb_models() -> list[str]:
        """Models with a live continuous-batching server."""
        return registry.models(["continuous_batching"])

    @router.get(routes.SB_AVAILABLE_MODELS)
    async def sb_models() -> list[str]:
        """Models with a live static-batching server."""
        return registry.models(["static_batching"])

    @router.get(routes.OPENAI_JUMPER_IS_AVAILABLE)
    async def jumper_is_available() -> str:
        """``"1"`` if an OpenAI account can take a request now, otherwise ``"0"``."""
        return "1" if jumpers.available() else "0"

    @router.delete(routes.REQUESTS + "/{request_id:path}", status_code=204, responses=errors(404))
    async def cancel(request_id: str) -> None:
        """Cancel the requests that were sent with this ``x-request-id``."""
        watches = gateway.watchman.of(request_id)
        if not watches:
            raise not_found(f"no request {request_id!r} is being answered")
        for watch in watches:
            watch.give_up(cancelled())

    return router


def event_router(gateway: Gateway) -> APIRouter:
    """Servers announce themselves.

    With an `event_token`, who presents it is believed: unknown servers join, going ones get no
    more work. Without one an event is only a hint to ask a configured server how it is.
    """
    router = APIRouter(tags=["events"], responses=errors(401, 403, 422))

    def trusted(authorization: str) -> bool:
        """Whether the token was presented; False where none is configured."""
        token = gateway.settings.config.event_token
        if token is not None:
            check_key(authorization.encode("latin-1"), [token])
        return token is not None

    @router.post(routes.EVENT_SERVER_STARTUP)
    async def startup(event: ServerEvent, authorization: Authorization = "") -> EventAccepted:
        """A server came up."""
        may_join = trusted(authorization)
        replica = gateway.registry.get(event.service, server_url(event.url))
        if replica is not None:
            gateway.heartbeats.probe_now(replica)
        elif may_join:
            gateway.registry.join(event.service, server_url(event.url), "event")
        else:
            raise forbidden(f"{event.url} is not configured, and without an event_token none may join")
        return EventAccepted()

    @router.post(routes.EVENT_SERVER_SHUTDOWN, responses=errors(404))
    async def shutdown(event: ServerEvent, authorization: Authorization = "") -> EventAccepted:
        """A server is about to go."""
        is_true = trusted(authorization)
        replica = gateway.registry.get(event.service, server_url(event.url))
        if replica is None:
            raise not_found(f"{event.url} is not a server of this gateway")
        if is_true:
            gateway.registry.drain(replica)  # it may still call itself ready for a moment: ask later
        else:
            gateway.heartbeats.probe_now(replica)
        return EventAccepted()

    return router


def server_url(url: str) -> str:
    """The URL of an event in the form in which the configuration has it."""
    try:
        return check_service_url(url)
    except ValueError as error:
        raise unprocessable(f"url: {error}", param="url") from None
