"""Tokens in float32: ``python -m benchmarks.gpu.ranks.tokens OUT.json``.

Greedy, drawn, of beams; swapped, and from the prefix cache. What --ranks 2 answers must be what --ranks 1
answers.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.checkpoints import LlamaShape, describe_llama
from benchmarks.gpu.ranks.switches import Switches
from benchmarks.gpu.ranks.times import load
from protocol.generation import GenerationConfig
from utils.commands import with_interpreter

SHAPE = LlamaShape(512, 4, 8, 2, 1_024)
WIDTH = 0.2
"""Standard deviation of the weights: so wide that the likeliest token leads clearly."""
OPTIONS: list[dict[str, Any]] = [
    {}, {"do_sample": True, "temperature": 0.8}, {"num_beams": 3}, {"repetition_penalty": 1.3},
    {"do_sample": True, "top_p": 0.9, "top_k": 50}, {"do_sample": True, "min_p": 0.05, "logprobs": 2},
    {"do_sample": True, "n": 2},
]  # fmt: skip
BLOCKS = {"ample": 4000, "scarce": 160}
"""Of the cache: with few of them sequences are swapped."""
REQUESTS = 70


def checkpoint(path: Path) -> Path:
    """A small one with random weights, unless it is there."""
    from server.models.config import ModelConfig

    if (path / "model.safetensors").is_file():
        return path
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPE, dtype="float32")
    architecture = ModelConfig.load(path).architecture
    meta = torch.device("meta")
    model = architecture.decoder(architecture.spec, torch.float32, meta, architecture.names)
    torch.manual_seed(0)
    tensors = {name: torch.empty(target.stored_shape()) for name, target in model.weights().items()}
    for name, tensor in tensors.items():
        tensor.fill_(1.0) if "norm" in name else tensor.normal_(0.0, WIDTH)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def answers(path: Path, ranks: int, blocks: int) -> dict[str, Any]:
    """Of requests of every kind, and once more from what is in the cache."""
    dice = random.Random(1)
    prompts = [[dice.randint(300, 9_999) for _ in range(dice.randint(1, 200))] for _ in range(REQUESTS)]
    configs = [
        GenerationConfig(**{"max_new_tokens": 40, "seed": i, "ignore_eos": True, **OPTIONS[i % len(OPTIONS)]})
        for i in range(len(prompts))
    ]
    sizes = {"num_blocks": blocks, "num_blocks_cpu": 1000, "swap_policy": "swap", "dtype": "float32"}
    llm = load(path, ranks, 96, Switches(made_up=False), **sizes)
    found = [
        [answer.token_ids for answer in each.answers]
        for _ in range(2)
        for each in llm.generate(prompts, configs)
    ]
    stats = llm.engine.stats()
    return {
        "answers": found,
        "swapped": stats.preempted_by_swap,
        "prefix_hits": stats.prefix_hits,
        "failures": stats.step_failures,
        "ranks": llm.capabilities["ranks"],
    }


def main() -> None:
    """Answer with ample and with scarce memory."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("out", type=Path)
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count())
    parser.add_argument("--models", type=Path, default=Path("/tmp/models"))
    arguments = parser.parse_args()
    path = checkpoint(arguments.models / "small")
    result: dict[str, Any] = {}
    for name, blocks in BLOCKS.items():
        result[name] = answers(path, arguments.ranks, blocks)
        arguments.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
