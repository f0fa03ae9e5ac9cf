"""vLLM on the workloads: ``.venv/bin/python -m benchmarks.gpu.peer_vllm SHAPE W1,W2 OUT.json``.

Its defaults (CUDA graphs, asynchronous scheduling, FlashAttention 3 on Hopper), random weights, no
prefix cache, token ids in and out, as for this project's engine. With --gate it waits for a line on standard
input before it starts, and for another one, having said that it is ready, before it measures.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import timing
from benchmarks.gpu.room import gigabytes_of, gpu_gigabytes
from benchmarks.gpu.workloads import LONG_BEAMS, LONG_LENGTH, Workload


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


def load(
    shape: str,
    directory: Path,
    *,
    tokenizer: Path | None = None,
    length: int = 4096,
    blocks: int | None = None,
    **options: Any,
) -> Any:
    """vLLM's `LLM` of that shape with random weights.

    Args:
        tokenizer: as of `describe_llama`; without one, vLLM knows token ids only.
        length: tokens of a sequence.
        blocks: of the cache; None: what 85 % of the memory allow.
        options: of `vllm.LLM`.
    """
    import vllm

    path = directory / f"vllm-{shape}"
    sizes = dataclasses.replace(SHAPES[shape], max_length=max(SHAPES[shape].max_length, length))
    describe_llama(path, sizes, tokenizer=tokenizer)
    return vllm.LLM(
        model=str(path),
        load_format="dummy",
        skip_tokenizer_init=tokenizer is None,
        dtype="bfloat16",
        max_model_len=length,
        gpu_memory_utilization=0.85 if blocks is None else gigabytes_of(sizes, blocks) / gpu_gigabytes(),
        num_gpu_blocks_override=blocks,
        generation_config="vllm",
        seed=0,
        **{"enable_prefix_caching": False, **options},
    )


def main() -> None:
    """Time the workloads and write the figures as JSON."""
    parser = timing.parser(__doc__)
    parser.add_argument("--blocks", type=int, help="size of the cache; default: what memory allows")
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share the model")
    parser.add_argument("--cache-gigabytes", type=float, help="of each GPU; default: what memory allows")
    parser.add_argument("--long", type=int, default=0, help="1: the engine of L1, L2, H1 and P1")
    timing.add_gate(parser)
    arguments = parser.parse_args()
    import vllm

    begin = time.perf_counter()
    cache = arguments.cache_gigabytes
    long: dict[str, Any] = {}
    if arguments.long:
        long = {"length": LONG_LENGTH, "max_num_seqs": LONG_BEAMS, "enable_prefix_caching": True}
    llm = load(
        arguments.shape,
        arguments.models,
        blocks=arguments.blocks,
        tensor_parallel_size=arguments.ranks,
        kv_cache_memory_bytes=None if cache is None else int(cache * 1e9),
        **long,
    )
    result: dict[str, Any] = {
        "engine": f"vllm {vllm.__version__}",
        "shape": arguments.shape,
        "ranks": arguments.ranks,
        "start_seconds": time.perf_counter() - begin,
        "workloads": {},
    }
    names, repeats = arguments.workloads, arguments.repeats
    for turn in timing.turns(arguments.gate):
        timing.time_workloads(lambda work: run(llm, work), names, repeats, result, arguments.out, turn)


if __name__ == "__main__":
    main()
