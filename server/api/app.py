"""The FastAPI application of a server."""

from __future__ import annotations

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from protocol import __version__
from protocol.completion import CompletionRequest
from protocol.openai import OpenAICompletionRequest
from server.api import chat_routes, token_routes
from server.api.access import KeyGuard
from server.api.answer import Context
from server.api.chat_routes import chat_router
from server.api.completions import completion_router
from server.api.config import HttpConfig
from server.api.introspection import control_router, health_router, model_router
from server.api.lifecycle import Lifecycle
from server.api.live import LiveRequests
from server.api.metrics import HttpMetrics, RequestMetrics
from server.api.middleware import Envelope
from server.api.openapi import add_schemas
from server.api.service import Service
from server.api.token_routes import token_router
from utils.access_log import AccessLog
from utils.answers import HeadAsGet
from utils.bodies import Bodies
from utils.body_reader import BodyReader
from utils.http_errors import install_error_handlers
from utils.pages import docs_router
from utils.request_ids import RequestIds
from utils.routers import paths
from utils.site_guard import SiteGuard


def create_app(
    service: Service,
    *,
    lifecycle: Lifecycle | None = None,
    http: HttpConfig | None = None,
    host: str = "",
) -> FastAPI:
    """An app that serves `service`.

    The app starts the service when it starts itself, answers ``/health`` and ``/status`` while
    the model loads, and drains and closes the service when it stops.

    Args:
        service: made, not started.
        lifecycle: how to start and stop it; by default in the background, deaf to signals.
        http: who may call it and with which bodies; by default all but pages of other sites.
        host: the name or address to listen on: clients may call the server by it.
    """
    http = http or HttpConfig()
    registry = CollectorRegistry()
    registry.register(service)
    lifecycle = lifecycle or Lifecycle(service)
    context = Context(service, RequestMetrics(registry, service.model_id), LiveRequests())
    app = FastAPI(
        title=f"Inference stack: {service.kind.replace('_', ' ')} server",
        version=__version__,
        lifespan=lifecycle.run,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    answering = (completion_router(context), chat_router(context), token_router(context))
    answered = [path for router in answering for path in paths(router)]
    for router in (
        *answering,
        model_router(service),
        health_router(service, lifecycle, answered),
        control_router(context, registry),
        docs_router(),
    ):
        app.include_router(router)
    install_error_handlers(app, "server")
    bodies = (CompletionRequest, OpenAICompletionRequest, *chat_routes.BODIES, *token_routes.BODIES)
    add_schemas(app, *bodies)
    app.add_middleware(BodyReader, bodies=Bodies(lambda: http))
    if http.server_key is not None:
        app.add_middleware(KeyGuard, key=http.server_key)
    app.add_middleware(SiteGuard, config=lambda: http, host=host)
    app.add_middleware(RequestIds)
    app.add_middleware(Envelope, service=service, metrics=HttpMetrics(registry))
    app.add_middleware(AccessLog, config=lambda: http)
    app.add_middleware(HeadAsGet)
    return app
