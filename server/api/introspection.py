"""The routes that tell what a server is and does, and cancel what it does."""

from __future__ import annotations

from fastapi import APIRouter, Response, status
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from protocol import routes
from protocol.errors import not_found, unavailable
from protocol.openai import ModelCard, ModelList
from protocol.status import ServerState, ServerStatus
from server.api.answer import Context
from server.api.openapi import document_errors


def introspection_router(context: Context, registry: CollectorRegistry) -> APIRouter:
    """Identity, liveness, readiness, metrics, status and cancellation of one service."""
    router = APIRouter(tags=["server"])
    service = context.service

    @router.get(routes.OPENAI_MODELS)
    async def models() -> ModelList:
        """The model served, once it is loaded."""
        if service.state is not ServerState.READY:
            return ModelList(data=[])
        return ModelList(data=[ModelCard(id=service.model_id, max_model_len=service.model_max_length)])

    @router.get(routes.OPENAI_MODELS + "/{model:path}", responses=document_errors(404))
    async def model(model: str) -> ModelCard:
        """One model, as the list has it."""
        return (await models()).card(model)

    @router.get(routes.MODEL_ID)
    async def model_id() -> str:
        """The id of the model served."""
        return service.model_id

    @router.head(routes.HEALTH, include_in_schema=False)
    @router.get(routes.HEALTH, responses=document_errors(503))
    async def health() -> dict[str, str]:
        """Liveness: the process answers and its model can be, or was, loaded."""
        if service.state is ServerState.FAILED:
            raise unavailable("the server has failed", code="failed")
        return {"status": "ok"}

    @router.head(routes.READY, include_in_schema=False)
    @router.get(routes.READY, responses=document_errors(503))
    async def ready() -> dict[str, str]:
        """Readiness: completion requests are taken."""
        state = service.state
        if state is not ServerState.READY:
            raise unavailable(f"the server is {state.value}", code=state.value, retry_after=2)
        return {"status": "ready"}

    @router.get(routes.STATUS)
    async def server_status() -> ServerStatus:
        """What the server is doing, what it can take, and what it chose at load."""
        return service.status()

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
