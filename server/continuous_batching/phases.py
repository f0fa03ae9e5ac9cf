"""Where the time of a start goes, for the operator's log."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Log how long the block took, once it is through."""
    begin = time.monotonic()
    yield
    logger.info("%s: %.1f s", name, time.monotonic() - begin)
