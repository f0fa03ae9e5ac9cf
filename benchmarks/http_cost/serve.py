"""The HTTP process to be measured: ``.venv/bin/python -m benchmarks.http_cost.serve MODEL PORT [PROFILE]``.

With PROFILE, a file, cProfile's figures are written there when it ends.
"""

from __future__ import annotations

import cProfile
import signal
import sys

import uvicorn

from server.api.app import create_app
from server.api.lifecycle import Lifecycle
from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.service import ContinuousBatchingService
from server.continuous_batching.spawned import SpawnedEngine
from utils.garbage import tame_collector
from utils.http_server import HttpProtocol
from utils.threads import share_interpreter


def serve(model: str, port: int) -> None:
    """Serve until a signal comes."""
    SpawnedEngine.module = "benchmarks.http_cost.engine"
    config = ServerConfig.model_validate({"model_loading_config": {"model_name_or_path": model}})
    service = ContinuousBatchingService(CheckpointReader(config), "m")
    share_interpreter()
    app = create_app(service, lifecycle=Lifecycle(service, on_ready=tame_collector))
    uvicorn.run(app, port=port, http=HttpProtocol, loop="uvloop", log_level="warning", access_log=False)


def main() -> None:
    """Serve, and profile where that is asked for."""
    model, port, *profile = sys.argv[1:]
    if not profile:
        return serve(model, int(port))
    profiler = cProfile.Profile()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises the signal again on its way out
    try:
        profiler.runcall(serve, model, int(port))
    finally:
        profiler.dump_stats(profile[0])


if __name__ == "__main__":
    main()
