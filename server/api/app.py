"""The FastAPI application of a server."""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from protocol import __version__
from protocol.completion import CompletionRequest
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest
from server.api.answer import Context
from server.api.completions import completion_router
from server.api.errors import install_error_handlers
from server.api.introspection import introspection_router
from server.api.lifecycle import Lifecycle
from server.api.live import LiveRequests
from server.api.metrics import HttpMetrics, RequestMetrics
from server.api.middleware import BodyLimit, Envelope
from server.api.openapi import add_schemas
from server.api.service import Service

MAX_BODY_BYTES = 16 * 2**20


def create_app(
    service: Service, *, lifecycle: Lifecycle | None = None, max_body_bytes: int = MAX_BODY_BYTES
) -> FastAPI:
    """An app that serves `service`.

    The app starts the service when it starts itself, answers ``/health`` and ``/status`` while
    the model loads, and drains and closes the service when it stops.

    Args:
        service: made, not started.
        lifecycle: how to start and stop it; by default in the background, deaf to signals.
        max_body_bytes: longest request body that is read.
    """
    registry = CollectorRegistry()
    registry.register(service)
    context = Context(service, RequestMetrics(registry, service.model_id), LiveRequests())
    app = FastAPI(
        title=f"Inference stack: {service.kind.replace('_', ' ')} server",
        version=__version__,
        lifespan=(lifecycle or Lifecycle(service)).run,
    )
    app.include_router(completion_router(context))
    app.include_router(introspection_router(context, registry))
    install_error_handlers(app)
    add_schemas(app, CompletionRequest, OpenAICompletionRequest, ChatCompletionRequest)
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    app.add_middleware(Envelope, service=service, metrics=HttpMetrics(registry))
    return app
