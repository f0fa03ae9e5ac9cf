"""The gateway as one ASGI application: the completion front, and FastAPI for all the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from client.config import GatewayConfig
from client.gateway import Gateway
from client.http.asgi import CompletionFront
from client.http.completions import completion_router
from client.http.gate import Gate
from client.http.routes import event_router, keyed_router, metrics_router, open_router
from client.reload import ConfigFile
from protocol import __version__
from utils.http_errors import install_error_handlers
from utils.pages import docs_router
from utils.request_ids import RequestIds
from utils.routers import paths


def create_app(
    config: GatewayConfig,
    config_file: ConfigFile | None = None,
    *,
    drain_on_signals: bool = False,
    host: str = "",
) -> CompletionFront:
    """A gateway that lives as long as the application's lifespan.

    Args:
        config: what to begin with.
        config_file: where it came from; changes of the file are taken over.
        drain_on_signals: on SIGTERM and SIGINT let what is in flight finish.
        host: the name or address to listen on: clients may call the gateway by it.
    """
    gateway = Gateway(config, config_file, drain_on_signals=drain_on_signals)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="Inference stack: gateway",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    unlocked, events, metrics = open_router(gateway), event_router(gateway), metrics_router(gateway)
    docs = docs_router()
    for router in (completion_router, unlocked, metrics, keyed_router(gateway), events, docs):
        app.include_router(router)
    install_error_handlers(app, "gateway")
    unlocked_paths = [*paths(unlocked), *paths(docs), "/openapi.json"]
    gate = Gate(gateway, app, unlocked=unlocked_paths, events=paths(events), metrics=paths(metrics))
    return CompletionFront(gateway, RequestIds(gate), host)
