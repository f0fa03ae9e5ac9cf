"""What the two server apps share: from options and a service to an app that runs by itself."""

from __future__ import annotations

import sys
from pathlib import Path

from fastapi import FastAPI

from protocol.events import ServerEvent
from server.api.announce import GatewayAnnouncer
from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.api.service import Service
from utils.apps import BOOT_ERROR
from utils.config import Secret
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
        event_token: the configuration's; one in the options goes before it.
    """
    announcer = None
    if options.client_url is not None:
        event = ServerEvent(url=options.url, service=service.kind, model_id=service.model_id)
        token = options.event_token or event_token
        secret = None if token is None else token.get_secret_value()
        announcer = GatewayAnnouncer(options.client_url, event, secret)
    lifecycle = Lifecycle(
        service, announcer=announcer, drain_on_signals=True, on_failure=lambda: sys.exit(BOOT_ERROR)
    )
    return create_app(service, lifecycle=lifecycle)
