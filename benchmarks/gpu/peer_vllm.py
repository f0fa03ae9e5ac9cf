"""vLLM on the workloads: ``.venv/bin/python -m benchmarks.gpu.peer_vllm SHAPE W1,W2 OUT.json``.

Its defaults (CUDA graphs, asynchronous scheduling, FlashAttention 3 on Hopper), random weights, no
prefix cache, token ids in and out, as for this project's engine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import timing
from benchmarks.gpu.workloads import Workload


def run(llm: Any, load: Workload) -> float:
    """Seconds that the workload takes."""
    from vllm import SamplingParams

    fixed = {"temperature": load.temperature, "ignore_eos": True, "detokenize": False, **load.options}
    params = [SamplingParams(max_tokens=n, **fixed) for n in load.new_tokens]
    prompts = [{"prompt_token_ids": prompt} for prompt in load.prompts]
    begin = time.perf_counter()
    answers = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - begin
    assert [len(answer.outputs[0].token_ids) for answer in answers] == load.new_tokens
    return seconds


def load(shape: str, directory: Path, *, tokenizer: Path | None = None, **options: Any) -> Any:
    """vLLM's `LLM` of that shape with random weights.

    Args:
        tokenizer: as of `describe_llama`; without one, vLLM knows token ids only.
        options: of `vllm.LLM`.
    """
    import vllm

    path = directory / f"vllm-{shape}"
    describe_llama(path, SHAPES[shape], tokenizer=tokenizer)
    return vllm.LLM(
        model=str(path),
        load_format="dummy",
        skip_tokenizer_init=tokenizer is None,
        dtype="bfloat16",
        max_model_len=4096,
        gpu_memory_utilization=0.85,
        enable_prefix_caching=False,
        generation_config="vllm",
        seed=0,
        **options,
    )


def main() -> None:
    """Time the workloads and write the figures as JSON."""
    parser = timing.parser(__doc__)
    parser.add_argument("--blocks", type=int, help="size of the cache; default: what memory allows")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    import vllm

    llm = load(arguments.shape, arguments.models, num_gpu_blocks_override=arguments.blocks)
    result: dict[str, Any] = {
        "engine": f"vllm {vllm.__version__}",
        "shape": arguments.shape,
        "start_seconds": time.perf_counter() - begin,
        "workloads": {},
    }
    names, repeats = arguments.workloads, arguments.repeats
    timing.time_workloads(lambda work: run(llm, work), names, repeats, result, arguments.out)


if __name__ == "__main__":
    main()
