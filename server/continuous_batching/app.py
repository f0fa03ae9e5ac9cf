"""The app of a continuous-batching server, from its options."""

from __future__ import annotations

from fastapi import FastAPI

from server.api.serve import serve, served_model_id
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.service import ContinuousBatchingService
from server.continuous_batching.spawned import SpawnedEngine
from utils.apps import exit_on_config_error
from utils.config import load_config
from utils.logs import configure_logging
from utils.options import CbServerAppOptions


def build_app(options: CbServerAppOptions, engine: SpawnedEngine) -> FastAPI:
    """The app that these options describe, whose first engine has been spawned."""
    configure_logging(options.debug)
    with exit_on_config_error():
        config = load_config(options.server_config_file_path, ServerConfig)
    model_id = served_model_id(options, config, config.model_loading_config.model_name_or_path)
    return serve(ContinuousBatchingService(config, model_id, engine), options, config)
