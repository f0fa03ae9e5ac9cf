"""The routes that tell what a server is and does, and cancel what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response, status
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from protocol import routes
from protocol.accepts import Accepts
from protocol.errors import not_found, unavailable
from protocol.models import ModelCard, ModelList
from protocol.status import Readiness, ServerState, ServerStatus
from server.api.answer import Context
from server.api.lifecycle import Lifecycle
from server.api.service import Service, check_ready
from utils.http_errors import document_errors


def model_router(service: Service) -> APIRouter:
    """What is served."""
    router = APIRouter(tags=["server"])

    @router.get(routes.OPENAI_MODELS)
    async def models() -> ModelList:
        """The model served, once it is loaded."""
        if service.state is not ServerState.READY:
            return ModelList(data=[])
        names = [service.model_id, *service.model_aliases]
        return ModelList(data=[ModelCard(id=name, max_model_len=service.model_max_length) for name in names])

    @router.get(routes.OPENAI_MODELS + "/{model:path}", responses=document_errors(404))
    async def model(model: str) -> ModelCard:
        """One model, as the list has it."""
        return (await models()).card(model)

    @router.get(routes.MODEL_ID)
    async def model_id() -> str:
        """The id of the model served."""
        return service.model_id

    return router


def health_router(service: Service, lifecycle: Lifecycle, completion_routes: Sequence[str]) -> APIRouter:
    """Liveness and readiness of one service, and all that it tells of itself.

    Args:
        service: what is served.
        lifecycle: knows what the gateway said.
        completion_routes: the paths by which the service is asked for answers.
    """
    router = APIRouter(tags=["server"])

    @router.get(routes.HEALTH, responses=document_errors(503))
    async def health() -> dict[str, str]:
        """Liveness: the model loads, or answers make progress."""
        problem = service.health()
        if problem is None and service.state is ServerState.FAILED:
            problem = "the server has failed"
        if problem is not None:
            code = "failed" if service.state is ServerState.FAILED else "unhealthy"
            raise unavailable(problem, code=code, retry_after=2)
        return {"status": "ok"}

    @router.get(routes.READY, responses=document_errors(503))
    async def ready() -> Readiness:
        """Readiness: completion requests are taken; and whether the gateway sends any."""
        check_ready(service)
        return Readiness(announcement=lifecycle.announcement)

    @router.get(routes.STATUS)
    async def server_status() -> ServerStatus:
        """What the server is doing, which requests it takes, and what it chose at load."""
        accepts = None
        if service.refusals is not None:
            accepts = Accepts(routes=tuple(completion_routes), refusals=service.refusals)
        told: dict[str, Any] = {"accepts": accepts, "fingerprint": service.fingerprint}
        told["model_aliases"] = list(service.model_aliases)
        status = service.status()
        if service.state is ServerState.READY:
            chosen = service.tokenizer.answer_format.told
            told["capabilities"] = {**status.capabilities, "chat_format": chosen}
        return status.model_copy(update={**told, "announcement": lifecycle.announcement})

    return router


def control_router(context: Context, registry: CollectorRegistry) -> APIRouter:
    """Metrics, and cancellation."""
    router = APIRouter(tags=["server"])
    service = context.service

    @router.get(routes.METRICS, response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """All metrics in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    @router.delete(
        routes.REQUESTS + "/{request_id:path}",
        status_code=status.HTTP_204_NO_CONTENT,
        responses=document_errors(404),
    )
    async def cancel(request_id: str) -> None:
        """Cancel the request that was sent with this ``x-request-id``."""
        cancelled = [service.cancel(job_id) for job_id in context.live.jobs(request_id)]
        if not any(cancelled):
            raise not_found(f"no request {request_id!r} is being answered")

    return router
