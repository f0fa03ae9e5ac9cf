"""What the two server apps share: from options and a service to an app that runs by itself."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fastapi import FastAPI

from protocol.events import ServerEvent
from server.api.announce import GatewayAnnouncer
from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.api.service import Service
from utils.apps import BOOT_ERROR
from utils.config import Secret
from utils.garbage import tame_collector
from utils.options import ServerAppOptions


def served_model_id(options: ServerAppOptions, model_path: str) -> str:
    """The name under which the model is served: by default that of its directory."""
    return options.model_id or Path(model_path).name


def serve(service: Service, options: ServerAppOptions, event_token: Secret | None) -> FastAPI:
    """An app for a process of its own: it announces itself to the gateway, drains on SIGTERM, and
    ends the process where the model cannot be served.

    Args:
        service: made, not started.
        options: those of the app.
        event_token: secret that the gateway asks of servers.
    """
    announcer = None
    if options.client_url is not None:
        event = ServerEvent(url=options.url, service=service.kind, model_id=service.model_id)
        secret = None if event_token is None else event_token.get_secret_value()
        announcer = GatewayAnnouncer(options.client_url, event, secret)
    lifecycle = Lifecycle(
        service, announcer=announcer, drain_on_signals=True, on_ready=tame_collector, on_failure=_leave
    )
    return create_app(service, lifecycle=lifecycle)


def _leave() -> None:
    """End the process after a failed start. The one line that matters is logged and the service is
    closed; an exception through the running event loop would bury that line under tracebacks."""
    logging.shutdown()
    os._exit(BOOT_ERROR)
