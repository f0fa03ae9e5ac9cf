"""Logging of every service: one line per event, on stderr."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"


def configure_logging(debug: bool = False) -> None:
    """Send all logs to stderr in one format; at level DEBUG if `debug`, otherwise INFO.

    Called by an app when it starts, never on import.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT, DATE_FORMAT))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[handler], force=True)
    for noisy in ("asyncio", "httpcore", "httpx", "openai", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.INFO if debug else logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
