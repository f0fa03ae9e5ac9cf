"""The app of a continuous-batching server, from its options."""

from __future__ import annotations

from fastapi import FastAPI

from server.api.serve import serve, served_model_id
from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.service import ContinuousBatchingService
from server.continuous_batching.spawned import SpawnedEngine
from utils.options import CbServerAppOptions


def build_app(options: CbServerAppOptions, reader: CheckpointReader, engine: SpawnedEngine) -> FastAPI:
    """Build the app around `engine`, which is already running and configured with what `reader` reads."""
    config = reader.config
    model_id = served_model_id(options, config, config.model_loading_config.model_name_or_path)
    return serve(ContinuousBatchingService(reader, model_id, engine), options, config)
