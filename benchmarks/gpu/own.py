"""This project's engine on the workloads: ``.venv/bin/python -m benchmarks.gpu.own SHAPE W1,W2 OUT.json``."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import swap, timing
from benchmarks.gpu.workloads import LONG_BEAMS, LONG_LENGTH, Workload
from protocol.generation import GenerationConfig
from server.models.decoder import Decoder


def random_weights(path: Path, model: Decoder, quantized: None = None) -> None:
    """Weights made up in place, as vLLM's ``load_format=dummy`` does: norms about 1, others small."""
    torch.manual_seed(0)
    for name, target in model.weights().items():
        if name.endswith("norm.weight"):
            target.tensor.fill_(1.0)
        else:
            target.tensor.normal_(0.0, 0.02)


def load(
    shape: str,
    directory: Path,
    *,
    num_blocks_cpu: int = 0,
    deterministic: bool = False,
    beams: int = 512,
    length: int = 4096,
    tokenizer: Path | None = None,
    **cache: Any,
) -> Any:
    """An `LLM` of that shape with random weights on the GPU.

    Args:
        deterministic: the key of `model_loading_config`.
        beams: sequences of a step.
        length: tokens of a sequence.
        tokenizer: as of `describe_llama`.
        cache: keys of `cache_config`.
    """
    from server.continuous_batching import LLM

    path = directory / shape
    sizes = dataclasses.replace(SHAPES[shape], max_length=max(SHAPES[shape].max_length, length))
    describe_llama(path, sizes, tokenizer=tokenizer)
    with mock.patch("server.models.load.load_weights", random_weights):
        return LLM(
            path,
            model_loading_config={
                "torch_dtype": "bfloat16", "model_max_length": length, "deterministic": deterministic,
            },
            batcher_config={
                "batch_max_tokens": 16384, "batch_max_beams": beams, "prefill_chunk_tokens": 8192,
                "max_waiting": 4096,
            },
            cache_config={"enable_prefix_cache": False, "num_blocks_cpu": num_blocks_cpu, **cache},
        )  # fmt: skip


def run(llm: Any, load: Workload) -> float:
    """Seconds that the workload takes."""
    configs = [
        GenerationConfig(
            max_new_tokens=n,
            ignore_eos="structured_outputs" not in load.options,  # their grammar has no end
            do_sample=load.temperature > 0.0,
            temperature=load.temperature or 1.0,
            num_beams=load.beams,
            seed=index,
            **load.options,
        )
        for index, n in enumerate(load.new_tokens)
    ]
    torch.cuda.synchronize()
    begin = time.perf_counter()
    generations = llm.generate(load.prompts, configs)
    seconds = time.perf_counter() - begin
    lengths = [len(g.answers[0].token_ids) for g in generations]
    assert lengths == load.new_tokens, "an answer has another length than was asked for"
    return seconds


def main() -> None:
    """Time the workloads and write the figures as JSON."""
    parser = timing.parser(__doc__)
    parser.add_argument("--blocks", type=int, help="size of the cache; default: what memory allows")
    parser.add_argument("--host-blocks", type=int, default=0, help="size of the swap pool")
    parser.add_argument("--long", type=int, default=0, help="1: the engine of L1, L2, H1 and P1")
    timing.add_gate(parser)
    arguments = parser.parse_args()
    begin = time.perf_counter()
    sizes: dict[str, Any] = {"num_blocks": arguments.blocks, "num_blocks_cpu": arguments.host_blocks}
    if arguments.long:
        sizes |= {"length": LONG_LENGTH, "beams": LONG_BEAMS, "enable_prefix_cache": True}
    llm = load(arguments.shape, arguments.models, **sizes)
    result: dict[str, Any] = {
        "engine": "own",
        "shape": arguments.shape,
        "start_seconds": time.perf_counter() - begin,
        "capabilities": llm.capabilities,
        "workloads": {},
    }
    for turn in timing.turns(arguments.gate):
        for name in arguments.workloads:
            if name == "SWAP":
                result["swap"] = swap.measure(llm)
                timing.write(result, name, result["swap"], arguments.out)
                continue
            seconds = timing.repeat(lambda work: run(llm, work), name, arguments.repeats, turn)
            result["stats"] = dataclasses.asdict(llm.engine.stats())
            timing.note(result, name, seconds, arguments.out)


if __name__ == "__main__":
    main()
