"""A server whose engine makes weights up:
``.venv/bin/python -m benchmarks.gpu.made_up_weights CONFIG PORT``."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.service import ContinuousBatchingService
from server.continuous_batching.spawned import SpawnedEngine
from utils.config import load_config
from utils.garbage import tame_collector
from utils.http_server import HttpProtocol
from utils.logs import configure_logging
from utils.threads import share_interpreter


def serve(config: Path, port: int, engine_module: str) -> None:
    """Serve the model `m` until a signal comes; `engine_module` is what the engine process runs."""
    configure_logging(False)
    share_interpreter()
    SpawnedEngine.module = engine_module
    service = ContinuousBatchingService(CheckpointReader(load_config(config, ServerConfig)), "m")
    app = create_app(service, lifecycle=Lifecycle(service, on_ready=tame_collector))
    uvicorn.run(app, port=port, http=HttpProtocol, loop="uvloop", log_level="warning", access_log=False)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), "benchmarks.gpu.made_up_engine")
