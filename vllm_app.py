#!/usr/bin/env python3
"""vLLM as a service: runs `vllm serve` from an environment of its own, and starts it again when it dies.

.venv/bin/python vllm_app.py --port 8003
"""

from __future__ import annotations

import logging
import os
import sys

from protocol.routes import HEALTH
from utils.addresses import reachable
from utils.boot import exit_on_config_error
from utils.config import ConfigError, load_config
from utils.keeper import Keeper, answers
from utils.logs import configure_logging
from utils.options import VllmAppOptions, parse_arguments
from utils.vllm import VllmConfig


def run(options: VllmAppOptions) -> int:
    """Keep `vllm serve` running as `options` say; returns the exit status."""
    configure_logging(options.debug)
    with exit_on_config_error():
        config = load_config(options.vllm_config_file_path, VllmConfig)
        command = config.command(options)
        logging.getLogger("vllm_app").info("running %s", " ".join(command))
        url = f"http://{reachable(options.host)}:{options.port}"
        keeper = Keeper(command, config.variables(options, os.environ), lambda: answers(url, HEALTH))
        try:
            return keeper.run()
        except OSError as error:
            raise ConfigError(f"{command[0]} cannot be run: {error.strerror}") from None


def main() -> None:
    """vLLM in the foreground, with its options on the command line."""
    sys.exit(run(parse_arguments(VllmAppOptions, description=__doc__)))


if __name__ == "__main__":
    main()
