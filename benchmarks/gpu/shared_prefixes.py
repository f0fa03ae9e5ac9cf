"""Attention of decodes that begin with the same blocks.

``.venv/bin/python -m benchmarks.gpu.shared_prefixes OUT.json``

Microseconds of a layer of the 8b where each decode reads its context alone, where it first asks whether any
of it is shared, and where the prefix is read once for four. The results of all are compared with the first.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES
from benchmarks.gpu.decode_scene import DEVICE, DecodeScene
from benchmarks.gpu.fp8_kernels import tried
from benchmarks.gpu.versions import versions
from server.ops.paged_attention import SharedPrefixes
from utils.commands import with_interpreter

SHARERS = 4
PREFIXES = {"beams": (208, 352, 400), "prompts": (512, 2_048, 2_176), "long": (4, 16_000, 16_064)}
"""Name → decodes, tokens that each four of them share, tokens of each."""
ALONE = {"16 x 512": (16, 512), "256 x 600": (256, 600), "1024 x 300": (1024, 300)}
"""Name → decodes that share nothing, tokens of each."""
FARTHEST = 0.02
"""Root mean square of the difference, by that of the values, that is let pass: of bfloat16."""


def _alone(count: int) -> SharedPrefixes:
    numbers = torch.zeros((2, count), dtype=torch.int32, device=DEVICE)
    numbers[1] = 1
    return SharedPrefixes(*numbers)


def _shared(count: int, prefix: int) -> SharedPrefixes:
    behind = -torch.arange(count, dtype=torch.int32, device=DEVICE) % -SHARERS
    sharers = torch.where(behind == 0, SHARERS, behind)
    return SharedPrefixes(torch.full_like(sharers, prefix), sharers)


@torch.inference_mode()
def measure(count: int, length: int, prefix: int, launches: int) -> dict[str, Any]:
    """Microseconds of a layer by way, and whether sharing finds what reading alone does."""
    scene = DecodeScene(SHAPES["8b"], count, length)
    if prefix:
        tables = scene.batch.tables.view(count // SHARERS, SHARERS, -1)
        tables[:, 1:, : prefix // 16] = tables[:, :1, : prefix // 16]
    ways = {"alone": None, "asked": _alone(count)} | ({"shared": _shared(count, prefix)} if prefix else {})
    plain = scene.batch

    def launch(shared: SharedPrefixes | None) -> torch.Tensor:
        scene.batch = replace(plain, shared=shared)
        return scene.launch()

    expected = launch(None).float()
    far = {
        way: ((launch(shared).float() - expected).square().mean() / expected.square().mean()).sqrt().item()
        for way, shared in ways.items()
    }
    times = tried({way: partial(launch, shared) for way, shared in ways.items()}, launches)
    return {"us": times, "far": far, "passed": all(value < FARTHEST for value in far.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"versions": versions()}
    scenes = {name: (count, length, prefix) for name, (count, prefix, length) in PREFIXES.items()}
    scenes |= {name: (count, length, 0) for name, (count, length) in ALONE.items()}
    for name, scene in scenes.items():
        results[name] = measure(*scene, DecodeScene.LAYERS)
        print(name, results[name], flush=True)
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
