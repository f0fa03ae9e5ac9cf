"""What the three app files share: leaving with one line on a bad configuration, and running in the
foreground."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from utils.config import ConfigError
from utils.http_server import Worker
from utils.options import AppOptions

BOOT_ERROR = 3
"""Exit status of a service that cannot start; gunicorn does not restart a worker that gives it."""

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep it in their pools, so that none
is closed by us at the moment when a client sends its next request on it."""


@contextmanager
def exit_on_config_error() -> Iterator[None]:
    """Turn a `ConfigError` of the block into one log line and exit status `BOOT_ERROR`."""
    try:
        yield
    except ConfigError as error:
        logging.getLogger("startup").error("%s", error)
        sys.exit(BOOT_ERROR)


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
