"""This project's engine, in this process."""

from __future__ import annotations

import os
import sys

from benchmarks.cpu.engines import MASKED
from benchmarks.cpu.peers.worker import serve
from benchmarks.cpu.variant import built_for
from benchmarks.cpu.workloads import Request
from protocol.generation import GenerationConfig
from server.continuous_batching import LLM


def main() -> None:
    weights, tokenizer, arithmetic = sys.argv[1:]
    with built_for("avx2" if MASKED in os.environ else None):
        llm = LLM(
            weights,
            model_loading_config={
                "torch_dtype": "bfloat16",
                "device": "cpu",
                "tokenizer_name_or_path": tokenizer,
                "cpu_arithmetic": arithmetic,
            },
            cache_config={"enable_prefix_cache": False},
        )

    def run(work: list[Request]) -> list[int]:
        configs = [GenerationConfig(max_new_tokens=new, ignore_eos=True) for _, new in work]
        generations = llm.generate([prompt for prompt, _ in work], configs)
        return [len(generation.answers[0].token_ids) for generation in generations]

    serve(run, "torch")


if __name__ == "__main__":
    main()
