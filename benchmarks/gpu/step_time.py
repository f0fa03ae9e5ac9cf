"""Time of a decode step on the GPU alone: ``.venv/bin/python -m benchmarks.gpu.step_time SHAPE``.

Replays the captured graphs back to back, without the host's part: the floor of what a step can take.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.graph_time import mean_ms
from benchmarks.gpu.own import load
from benchmarks.gpu.replays import place_decodes, replay_decodes
from utils.commands import with_interpreter


@torch.inference_mode()
def replay_ms(llm: Any, rows: int, context: int, replays: int = 30) -> float:
    """Median milliseconds of a step of `rows` decodes, each at position `context`."""
    place_decodes(llm, rows, context)
    return statistics.median(mean_ms(lambda: replay_decodes(llm, rows), replays) for _ in range(5))


def main() -> None:
    """Print a table of rows × context."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    arguments = parser.parse_args()
    llm = load(arguments.shape, arguments.models)
    weights = sum(p.numel() * p.element_size() for p in llm.engine.worker.runner.model.parameters())
    print(f"{arguments.shape}: weights {weights / 1e9:.2f} GB; ms a step:")
    contexts = (1, 384, 1024)
    print("rows   " + "".join(f"{f'context {c}':>14}" for c in contexts))
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        print(f"{rows:4d}   " + "".join(f"{replay_ms(llm, rows, c):14.3f}" for c in contexts))


if __name__ == "__main__":
    main()
