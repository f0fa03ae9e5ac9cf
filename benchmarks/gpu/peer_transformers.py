"""transformers on the workloads:
``.venv/bin/python -m benchmarks.gpu.peer_transformers SHAPE W1,W3 OUT.json``.

W1 through its continuous batching, with FlashAttention 3 where vLLM brings it (without, its cost grows
with all tokens held, and W1 would take minutes: it is left out); W2 and W3 through ``generate`` with
its defaults; W4, one new token, likewise.
"""

from __future__ import annotations

import glob
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoints import SHAPES, describe_llama
from benchmarks.gpu import timing
from benchmarks.gpu.workloads import Workload, workload

FLASH_INTERFACE = """
import torch

torch.ops.load_library({library!r})


def _attend(q, k, v, cu_q, used_k, cu_k, max_q, max_k, pages, scale, causal, window):
    scale = scale or q.shape[-1] ** -0.5
    return torch.ops._vllm_fa3_C.fwd(
        q, k, v, None, None, None, None, cu_q, cu_k, None, None, used_k, max_q, max_k, pages,
        None, None, None, None, None, None, None, None, scale, causal, window[0], window[1],
        0.0, True, None, 0, None, 0, None, 1, 0, None,
    )[0]


def flash_attn_func(*args, **kwargs):
    raise NotImplementedError("transformers imports it with those below, and calls only them")


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           softmax_scale=None, causal=False, window_size=(-1, -1)):
    return _attend(q, k, v, cu_seqlens_q, None, cu_seqlens_k, max_seqlen_q, max_seqlen_k, None,
                   softmax_scale, causal, window_size)


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, page_table=None,
                            softmax_scale=None, causal=False, window_size=(-1, -1)):
    rows, size = q.shape[0], k_cache.shape[1]
    if k is not None:  # this build appends nothing itself
        at = cache_seqlens.long()
        page = page_table.long().gather(1, (at // size).clamp(min=0)[:, None])[:, 0]
        k_cache.index_put_((page, at % size), k[:, 0])
        v_cache.index_put_((page, at % size), v[:, 0])
        cache_seqlens = cache_seqlens + 1
    bounds = torch.arange(rows + 1, dtype=torch.int32, device=q.device)
    return _attend(q[:, 0].contiguous(), k_cache, v_cache, bounds, cache_seqlens, None, 1,
                   page_table.shape[1] * size, page_table, softmax_scale, causal, window_size)[:, None]
"""
"""`flash_attn_interface`, the module in which transformers looks for FlashAttention 3, over vLLM's build."""


def offer_flash_attention() -> bool:
    """Let transformers find the FlashAttention 3 that vLLM brings; False: there is none."""
    vllm = importlib.util.find_spec("vllm")
    places = [] if vllm is None else vllm.submodule_search_locations or []
    libraries = [file for place in places for file in glob.glob(f"{place}/vllm_flash_attn/_vllm_fa3_C*.so")]
    if not libraries:
        return False
    site = Path(tempfile.mkdtemp())
    (site / "flash_attn_interface.py").write_text(FLASH_INTERFACE.format(library=libraries[0]))
    info = site / "flash_attn_3-3.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn-3\nVersion: 3.0.0\n")
    (info / "top_level.txt").write_text("flash_attn_interface\n")
    (info / "RECORD").write_text("")
    sys.path.insert(0, str(site))
    return True


def make_model(shape: str, directory: Path, attention: str) -> Any:
    """A model of that shape with random weights on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    path = directory / f"hf-{shape}"
    path.mkdir(parents=True, exist_ok=True)
    describe_llama(path, SHAPES[shape])
    config = AutoConfig.from_pretrained(path)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    return model.eval()


def generate(model: Any, load: Workload) -> float:
    """Seconds of ``generate`` on prompts and answers of one length each."""
    ids = torch.tensor(load.prompts, device="cuda")
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    begin = time.perf_counter()
    answers = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=load.new_tokens[0], **options
    )
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    assert answers.shape == (len(load.prompts), len(load.prompts[0]) + load.new_tokens[0])
    return seconds


def batch_continuously(manager: Any, load: Workload) -> float:
    """Seconds of transformers' continuous batching."""
    begin = time.perf_counter()
    for prompt, new_tokens in zip(load.prompts, load.new_tokens, strict=True):
        manager.add_request(prompt, max_new_tokens=new_tokens, eos_token_id=-1)
    left, tokens = len(load.prompts), 0
    while left:
        result = manager.get_result(timeout=1)
        if result is None:
            assert manager.is_running(), "transformers' batching thread ended"
        elif result.is_finished():
            assert result.error is None, result.error
            tokens += len(result.generated_tokens)
            left -= 1
    seconds = time.perf_counter() - begin
    assert tokens == load.output_tokens
    return seconds


def measure_continuous(shape: str, name: str, directory: Path, repeats: int) -> list[float]:
    """Times of a workload through continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    timed = workload(name)
    model = make_model(shape, directory, "flash_attention_3")
    options = GenerationConfig(
        do_sample=True, temperature=timed.temperature, top_k=0, top_p=1.0,
        eos_token_id=-1, pad_token_id=0, max_new_tokens=max(timed.new_tokens),
    )  # fmt: skip
    sizes = ContinuousBatchingConfig(
        allow_block_sharing=False,
        seed=0,
        max_requests_per_batch=len(timed.prompts),
        max_blocks_per_request=10,
    )
    with model.continuous_batching_context_manager(
        generation_config=options, continuous_batching_config=sizes
    ) as manager:
        return timing.repeat(lambda work: batch_continuously(manager, work), name, repeats)


def measure_generate(shape: str, name: str, directory: Path, repeats: int) -> list[float]:
    """Times of a workload through ``generate``."""
    model = make_model(shape, directory, "sdpa")
    return timing.repeat(lambda work: generate(model, work), name, repeats)


def main() -> None:
    """Time the workloads and write the figures as JSON."""
    has_flash = offer_flash_attention()  # before transformers looks what there is
    import transformers

    arguments = timing.parser(__doc__).parse_args()
    result: dict[str, Any] = {
        "engine": f"transformers {transformers.__version__}",
        "shape": arguments.shape,
        "workloads": {},
    }
    for name in arguments.workloads:
        if name == "W1" and not has_flash:
            print("W1: no FlashAttention 3 for transformers' continuous batching, left out", flush=True)
            continue
        time_it = measure_continuous if name == "W1" else measure_generate
        seconds = time_it(arguments.shape, name, arguments.models, arguments.repeats)
        timing.note(result, name, seconds, arguments.out)


if __name__ == "__main__":
    main()
