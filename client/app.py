"""The gateway as one ASGI application: the completion front, and FastAPI for all the rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from client.asgi import CompletionFront
from client.completions import completion_router
from client.config import GatewayConfig
from client.errors import install_error_handlers
from client.gateway import Gateway
from client.reload import ConfigFile
from client.routes import event_router, keyed_router, open_router
from protocol import __version__


def create_app(
    config: GatewayConfig, config_file: ConfigFile | None = None, *, drain_on_signals: bool = False
) -> CompletionFront:
    """A gateway that lives as long as the application's lifespan.

    Args:
        config: what to begin with.
        config_file: where it came from; changes of the file are taken over.
        drain_on_signals: on SIGTERM and SIGINT let what is in flight finish.
    """
    gateway = Gateway(config, config_file, drain_on_signals=drain_on_signals)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(title="Inference stack: gateway", version=__version__, lifespan=lifespan)
    app.include_router(completion_router)
    app.include_router(open_router(gateway))
    app.include_router(keyed_router(gateway))
    app.include_router(event_router(gateway))
    install_error_handlers(app)
    return CompletionFront(gateway, app)
