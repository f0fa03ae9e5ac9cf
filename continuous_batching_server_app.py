#!/usr/bin/env python3
"""Continuous-batching server: every step runs whatever sequences there are, from a paged cache.

.venv/bin/python continuous_batching_server_app.py --port 8001
gunicorn "continuous_batching_server_app:create_app()"     options in INFERENCE_STACK_* variables
"""

from __future__ import annotations

from fastapi import FastAPI

from server.api.serve import serve, served_model_id
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.service import ContinuousBatchingService
from utils.apps import exit_on_config_error, run_in_foreground
from utils.config import load_config
from utils.logs import configure_logging
from utils.options import CbServerAppOptions, from_environment, parse_arguments


def build(options: CbServerAppOptions) -> FastAPI:
    """The app that these options describe."""
    configure_logging(options.debug)
    with exit_on_config_error():
        config = load_config(options.server_config_file_path, ServerConfig)
    model_id = served_model_id(options, config, config.model_loading_config.model_name_or_path)
    return serve(ContinuousBatchingService(config, model_id), options, config)


def create_app() -> FastAPI:
    """The app under gunicorn, with its options in the environment."""
    with exit_on_config_error():
        options = from_environment(CbServerAppOptions)
    return build(options)


def main() -> None:
    """The app in the foreground, with its options on the command line."""
    options = parse_arguments(CbServerAppOptions, description=__doc__)
    run_in_foreground(build(options), options)


if __name__ == "__main__":
    main()
