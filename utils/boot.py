"""A start that ends with one line on a bad configuration."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from utils.config import ConfigError

BOOT_ERROR = 3
"""Exit status of a service that cannot start; gunicorn does not restart a worker that gives it."""


@contextmanager
def exit_on_config_error() -> Iterator[None]:
    """Turn a `ConfigError` of the block into one log line and exit status `BOOT_ERROR`."""
    try:
        yield
    except ConfigError as error:
        logging.getLogger("startup").error("%s", error)
        sys.exit(BOOT_ERROR)
