"""How long the server app takes to be ready: ``.venv/bin/python -m benchmarks.gpu.starts SHAPE OUT.json``.

From its process to the first answer of ``/ready`` that says so, on a checkpoint with random weights, again
and again. The first start compiles what is not compiled yet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.over_http import save_checkpoint, served
from benchmarks.gpu.versions import versions
from utils.commands import with_interpreter


def main() -> None:
    """Start it several times; show and write what each start took."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--models", type=Path, default=Path("/tmp/http-models"))
    arguments = parser.parse_args()
    path = save_checkpoint(arguments.shape, arguments.models)
    starts = []
    for _ in range(arguments.repeats):
        with served(path) as server:
            starts.append(server.start)
            print(json.dumps(server.start), flush=True)
    result = {"shape": arguments.shape, "versions": versions("transformers"), "starts": starts}
    arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
