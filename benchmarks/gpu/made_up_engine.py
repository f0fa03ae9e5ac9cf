"""The engine process with random weights:
``.venv/bin/python -m benchmarks.gpu.made_up_engine ADDRESS PARENT``."""

from __future__ import annotations

import sys

import server.models.load
from benchmarks.gpu.own import random_weights
from server.continuous_batching.engine_process import main

if __name__ == "__main__":
    server.models.load.load_weights = random_weights  # type: ignore[attr-defined,assignment]
    sys.exit(main())
