"""Configures the first engine before the HTTP server is imported.

Reading the model's configuration and importing the HTTP server each keep the interpreter busy for about a
second, and the engine waits for the configuration only.
"""

from __future__ import annotations

from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.spawned import SpawnedEngine
from utils.boot import exit_on_config_error
from utils.config import load_config
from utils.logs import configure_logging
from utils.options import CbServerAppOptions

CONFIG_TIMEOUT_SECONDS = 3.0
"""Enough for local files. A download from a hub takes longer, and the server listens meanwhile."""


def configure_first(engine: SpawnedEngine, options: CbServerAppOptions) -> CheckpointReader:
    """Start reading the checkpoint and sending startup data to `engine`.

    Returns when the model's configuration has been read, or after `CONFIG_TIMEOUT_SECONDS`.
    """
    configure_logging(options.debug)
    with exit_on_config_error():
        config = load_config(options.server_config_file_path, ServerConfig)
    reader = CheckpointReader(config)
    engine.configure(reader.parts())
    reader.wait_for_config(CONFIG_TIMEOUT_SECONDS)
    return reader
