"""A rank beside rank 0 of an engine under measurement: that of a server, but for `Switches`."""

from __future__ import annotations

import os
import sys

from benchmarks.gpu.ranks.switches import follow_environment
from server.continuous_batching.ranks.process import main

if __name__ == "__main__":
    follow_environment()
    status = main()
    sys.stderr.flush()
    os._exit(status)
