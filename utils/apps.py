"""An app in the foreground, without gunicorn."""

from __future__ import annotations

from typing import Any

import uvicorn

from utils.http_server import Worker
from utils.options import AppOptions

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep it in their pools, so that none
is closed by us at the moment when a client sends its next request on it."""


def run_in_foreground(app: Any, options: AppOptions) -> None:
    """Serve the ASGI `app` until Ctrl-C or SIGTERM, then let requests in flight finish."""
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_config=None,  # logging is configured by the app
        access_log=False,  # services write their own
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        **Worker.CONFIG_KWARGS,
    )
