"""What the two server apps share: from options and a service to an app that runs by itself."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from fastapi import FastAPI

from protocol.events import ServerEvent
from server.api.app import create_app
from server.api.config import ApiConfig, HttpConfig
from server.api.lifecycle import Lifecycle
from server.api.service import Service
from utils.boot import BOOT_ERROR
from utils.garbage import tame_collector
from utils.options import ServerAppOptions
from utils.threads import share_interpreter

FAILED = 1
"""Exit status of a process that served and can do so no more."""
_LEAVING_SECONDS = 1.0

logger = logging.getLogger(__name__)


def served_model_id(options: ServerAppOptions, config: ApiConfig, model_path: str) -> str:
    """The name under which the model is served: that of the command line, else of the configuration, else
    of its directory."""
    return options.model_id or config.model_id or _name_of(Path(model_path))


def _name_of(path: Path) -> str:
    """The name of a model's directory or file; in the hub's cache, where that is a commit, of the model."""
    cached = path.parents[1].name if len(path.parents) > 1 and path.parent.name == "snapshots" else ""
    return cached.rpartition("--")[2] if cached.startswith("models--") else path.name.removesuffix(".gguf")


def serve(service: Service, options: ServerAppOptions, config: HttpConfig) -> FastAPI:
    """An app for a process of its own: it announces itself to the gateway, drains on SIGTERM, and
    ends the process where the model cannot be served.

    Args:
        service: made, not started.
        options: those of the app.
        config: that of the server.
    """
    announcer = None
    if options.client_url is not None:
        from server.api.announce import GatewayAnnouncer  # an HTTP client takes its time to import

        event = ServerEvent(url=options.url, service=service.kind, model_id=service.model_id)
        secret = None if config.event_token is None else config.event_token.get_secret_value()
        announcer = GatewayAnnouncer(options.client_url, event, secret)
    share_interpreter()
    lifecycle = Lifecycle(
        service, announcer=announcer, drain_on_signals=True, on_ready=tame_collector, on_failure=_leave
    )
    return create_app(service, lifecycle=lifecycle, http=config, host=options.host)


def leave_for_restart() -> None:
    """End the process soon, with a status after which gunicorn starts another: this one can serve no more.

    Responses that are on their way have a moment to go out. The process ends at once then, for threads
    may hang in a broken device.
    """
    logger.error("ending this process: gunicorn starts another, a server without it has to be started again")
    asyncio.get_running_loop().call_later(_LEAVING_SECONDS, _exit, FAILED)


def _leave() -> None:
    """End the process after a failed start. The one line that matters is logged and the service is
    closed; an exception through the running event loop would bury that line under tracebacks."""
    _exit(BOOT_ERROR)


def _exit(status: int) -> None:
    logging.shutdown()
    os._exit(status)
