#!/usr/bin/env python3
"""Continuous-batching server: every step runs whatever sequences there are, from a paged cache.

.venv/bin/python continuous_batching_server_app.py --port 8001
gunicorn "continuous_batching_server_app:create_app()"     options in INFERENCE_STACK_* variables
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.continuous_batching.spawned import SpawnedEngine
from utils.garbage import without_collections
from utils.signals import end_at_ctrl_c

if TYPE_CHECKING:
    from fastapi import FastAPI

# The imports of each process take a second or more, so the engine process is started first, and configured
# before this process imports the HTTP server.


def create_app() -> FastAPI:
    """The app under gunicorn, with its options in the environment."""
    engine = SpawnedEngine()
    with without_collections():
        from server.continuous_batching.first_engine import configure_first
        from utils.boot import exit_on_config_error
        from utils.options import CbServerAppOptions, from_environment

        with exit_on_config_error():
            options = from_environment(CbServerAppOptions)
        reader = configure_first(engine, options)
        from server.continuous_batching.app import build_app

        return build_app(options, reader, engine)


def main() -> None:
    """The app in the foreground, with its options on the command line."""
    end_at_ctrl_c()
    engine = SpawnedEngine()
    with without_collections():
        from utils.options import CbServerAppOptions, parse_arguments

        options = parse_arguments(CbServerAppOptions, description=__doc__)
        from server.continuous_batching.first_engine import configure_first

        reader = configure_first(engine, options)
        from server.continuous_batching.app import build_app
        from utils.apps import run_in_foreground

        app = build_app(options, reader, engine)
    run_in_foreground(app, options)


if __name__ == "__main__":
    main()
