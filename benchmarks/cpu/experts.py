"""A model with experts at batch 1: ``.venv/bin/python -m benchmarks.cpu.experts [--layers 4]``.

The shape of OLMoE-1B-7B with as many layers as memory is to hold (0.8 GB each), random bfloat16 weights: ms
a token beside the time that reading the weights takes that a token passes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.checkpoints import byte_tokenizer
from benchmarks.cpu.bandwidth import read_bandwidth
from benchmarks.machine import processor, today
from protocol.generation import GenerationConfig
from server.models.decoder import Decoder
from utils.commands import with_interpreter

PROMPT, NEW = 32, 48
BAR = 1.15


def random_weights(path: Path, model: Decoder, quantized: None = None) -> None:
    """Norms of 1; all other weights repeat a million random numbers: drawing each would take too long."""
    torch.manual_seed(0)
    numbers = torch.randn(999_983) * 0.02
    for name, target in model.weights().items():
        if name.endswith("norm.weight"):
            target.tensor.fill_(1.0)
            continue
        flat = torch.empty(target.tensor.shape, dtype=target.tensor.dtype).view(-1)
        for begin in range(0, len(flat), len(numbers)):
            flat[begin : begin + len(numbers)] = numbers[: len(flat) - begin]
        target.tensor.copy_(flat.view(target.tensor.shape))


def load(path: Path, layers: int) -> tuple[Any, int]:
    """(an `LLM` of the shape, bytes of the weights that a token passes)."""
    from transformers import OlmoeConfig

    from server.continuous_batching import LLM

    config = OlmoeConfig(
        num_hidden_layers=layers, intermediate_size=1_024, architectures=["OlmoeForCausalLM"],
        dtype="bfloat16", bos_token_id=0, eos_token_id=1, pad_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    byte_tokenizer(path, 1024)
    config.save_pretrained(path)
    hidden, inner, used = config.hidden_size, config.intermediate_size, config.num_experts_per_tok
    layer = 4 * hidden * hidden + used * 3 * hidden * inner + config.num_experts * hidden
    active = 2 * (layers * layer + config.vocab_size * hidden)
    with mock.patch("server.models.load.load_weights", random_weights):
        llm = LLM(
            path,
            model_loading_config={"torch_dtype": "bfloat16", "device": "cpu", "model_max_length": 512},
            cache_config={"num_blocks": 64, "num_blocks_cpu": 0, "enable_prefix_cache": False},
        )
    return llm, active


def token_seconds(llm: Any, turns: int) -> list[tuple[float, float]]:
    """Of each turn, (seconds of a token, prompts not counted, bytes a second that are read before and after).

    How fast memory reads changes from minute to minute on machines that others share.
    """
    prompt = [torch.randint(3, 300, (PROMPT,)).tolist()]

    def timed(new: int) -> float:
        begin = time.perf_counter()
        llm.generate(prompt, GenerationConfig(max_new_tokens=new, ignore_eos=True))
        return time.perf_counter() - begin

    timed(4)
    threads, found = torch.get_num_threads(), []
    before = read_bandwidth(threads)
    for _ in range(turns):
        seconds = (timed(NEW + 1) - timed(1)) / NEW
        after = read_bandwidth(threads)
        found.append((seconds, (before + after) / 2))
        before = after
    return found


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=with_interpreter(__doc__))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=12)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        llm, active = load(Path(directory), arguments.layers)
        turns = token_seconds(llm, arguments.turns)
    ratios = sorted(seconds * bandwidth / active for seconds, bandwidth in turns)
    found = {
        "date": today(),
        "processor": processor(),
        "layers": arguments.layers,
        "kernels": llm.capabilities,
        "active_bytes": active,
        "bytes_per_second": statistics.median(bandwidth for _, bandwidth in turns),
        "ms_per_token": 1e3 * statistics.median(seconds for seconds, _ in turns),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "bar": BAR,
    }
    print(json.dumps(found, indent=1, default=str))


if __name__ == "__main__":
    main()
