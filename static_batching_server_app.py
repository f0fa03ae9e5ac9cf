#!/usr/bin/env python3
"""Static-batching server: packs requests and runs them through transformers' generate.

.venv/bin/python static_batching_server_app.py --port 8002
gunicorn "static_batching_server_app:create_app()"     options in INFERENCE_STACK_* variables
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.apps import run_in_foreground
from utils.boot import exit_on_config_error
from utils.options import SbServerAppOptions, from_environment, parse_arguments
from utils.signals import end_at_ctrl_c

if TYPE_CHECKING:
    from fastapi import FastAPI


def build(options: SbServerAppOptions) -> FastAPI:
    """The app that these options describe."""
    # seconds of imports: help, and what is wrong with the options, is said without them
    from server.api.serve import leave_for_restart, serve, served_model_id
    from server.static_batching.config import ServerConfig
    from server.static_batching.service import StaticBatchingService
    from utils.config import load_config
    from utils.logs import configure_logging

    configure_logging(options.debug)
    with exit_on_config_error():
        config = load_config(options.server_config_file_path, ServerConfig)
    model_id = served_model_id(options, config, config.worker_config.model_name_or_path)
    service = StaticBatchingService(config, model_id, on_failure=leave_for_restart)
    return serve(service, options, config)


def create_app() -> FastAPI:
    """The app under gunicorn, with its options in the environment."""
    with exit_on_config_error():
        options = from_environment(SbServerAppOptions)
    return build(options)


def main() -> None:
    """The app in the foreground, with its options on the command line."""
    end_at_ctrl_c()
    options = parse_arguments(SbServerAppOptions, description=__doc__)
    run_in_foreground(build(options), options)


if __name__ == "__main__":
    main()
