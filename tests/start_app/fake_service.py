"""A service without a model, which starts, fails or lingers as FAKE_SERVICE says."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from protocol import routes
from utils.boot import exit_on_config_error
from utils.config import ConfigError
from utils.logs import configure_logging
from utils.options import ClientAppOptions, from_environment

LOAD_SECONDS = 1.0


def create_app() -> FastAPI:
    """The app factory that gunicorn calls."""
    mode = os.environ.get("FAKE_SERVICE", "")
    options = from_environment(ClientAppOptions)
    configure_logging(options.debug)
    if mode == "misconfigured":
        with exit_on_config_error():
            raise ConfigError("client_config.json:3: unknown key 'heartbeat'")
    started = time.monotonic()
    slow_requests = 0

    def state() -> str:
        if mode == "failing":
            return "failed"
        return "ready" if time.monotonic() - started > LOAD_SECONDS and mode != "never ready" else "loading"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if mode == "lingering":
            await asyncio.sleep(60)

    app = FastAPI(lifespan=lifespan)

    @app.get(routes.READY)
    async def ready() -> JSONResponse:
        return JSONResponse({}, status_code=200 if state() == "ready" else 503)

    @app.get(routes.STATUS)
    async def status() -> dict[str, object]:
        return {"state": state(), "debug": options.debug, "port": options.port, "slow": slow_requests}

    @app.get("/slow")
    async def slow() -> str:
        nonlocal slow_requests
        slow_requests += 1
        await asyncio.sleep(1.5)
        return "done"

    return app
