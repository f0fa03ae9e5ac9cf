"""transformers' `generate` on one left-padded batch, run to its longest answer."""

from __future__ import annotations

import sys

import torch

from benchmarks.cpu.peers.worker import serve
from benchmarks.cpu.workloads import Request


def main() -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    padding = 2

    @torch.inference_mode()
    def run(work: list[Request]) -> list[int]:
        width, new = max(len(prompt) for prompt, _ in work), max(new for _, new in work)
        ids = torch.full((len(work), width), padding)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(work):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        config = GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=padding
        )
        output = model.generate(ids, attention_mask=mask, generation_config=config)
        return [min(count, output.shape[1] - width) for _, count in work]

    serve(run, "transformers", "torch")


if __name__ == "__main__":
    main()
