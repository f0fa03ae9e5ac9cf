"""The first engine of a server app: it is told what to serve before this process imports the rest it needs.

What the engine waits for takes a second of Python's interpreter to read, and what serves HTTP takes another.
"""

from __future__ import annotations

from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.config import ServerConfig
from server.continuous_batching.spawned import SpawnedEngine
from utils.boot import exit_on_config_error
from utils.config import load_config
from utils.logs import configure_logging
from utils.options import CbServerAppOptions

PATIENCE_SECONDS = 3.0
"""Reading what is on this machine's disks takes no longer; a download from a hub does."""


def tell_first(engine: SpawnedEngine, options: CbServerAppOptions) -> CheckpointReader:
    """Begin to read the checkpoint that these options name; returns once the engine has its configuration,
    or the patience is at its end."""
    configure_logging(options.debug)
    with exit_on_config_error():
        config = load_config(options.server_config_file_path, ServerConfig)
    reader = CheckpointReader(config)
    engine.tell(reader.parts())
    reader.wait_for_config(PATIENCE_SECONDS)
    return reader
