"""transformers' own continuous batching."""

from __future__ import annotations

import itertools
import sys

import torch

from benchmarks.cpu.peers.worker import serve
from benchmarks.cpu.workloads import Request


def main() -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = AutoModelForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    model.generation_config.eos_token_id = None
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            max_new_tokens=128, do_sample=False, eos_token_id=-1, pad_token_id=2
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=256, num_blocks=64, max_batch_tokens=2048, allow_block_sharing=False
        ),
    )
    manager.start()
    numbers = itertools.count()

    def run(work: list[Request]) -> list[int]:
        names = [f"request-{next(numbers)}" for _ in work]
        for name, (prompt, new) in zip(names, work, strict=True):
            manager.add_request(prompt, request_id=name, max_new_tokens=new, eos_token_id=-1)
        produced: dict[str, int] = {}
        while len(produced) < len(work):
            result = manager.get_result(timeout=120)
            if result is None or result.error:
                raise RuntimeError(result.error if result else "no result in two minutes")
            if result.is_finished():
                produced[result.request_id] = len(result.generated_tokens)
        return [produced[name] for name in names]

    try:
        serve(run, "transformers", "torch")
    finally:
        manager.stop(block=True, timeout=10)


if __name__ == "__main__":
    main()
