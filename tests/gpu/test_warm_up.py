"""What a prompt, a step or a choice of tokens needs is compiled before the first request."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import tiny_llama
from tests.scripts import run_script

_SERVE = """
import random
import sys
from pathlib import Path

import triton

from protocol.generation import GenerationConfig
from tests.gpu.test_engine import cuda_llm

compiled = []

def note(**kernel):
    compiled.append(kernel["repr"])

triton.knobs.runtime.jit_cache_hook = note
llm = cuda_llm(Path(sys.argv[1]), dtype=sys.argv[2])
assert compiled, "the hook hears of kernels"
compiled.clear()
dice = random.Random(0)
prompts = [[dice.randint(3, 90) for _ in range(dice.randint(1, 300))] for _ in range(150)]
options = [
    {}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "min_p": 0.1, "frequency_penalty": 0.5},
    {"logit_bias": {7: 1.0}}, {"logit_bias": {8: 1.0}, "repetition_penalty": 1.2, "top_p": 0.9},
    {"bad_words_ids": [[5, 6]], "prompt_logprobs": 1}, {"allowed_token_ids": [7, 8], "logit_bias": {8: 1.0}},
]
configs = [
    GenerationConfig(max_new_tokens=dice.randint(1, 40), do_sample=bool(i % 2), seed=i, **options[i % 8])
    for i in range(len(prompts))
]
drafted = [config.model_copy(update={"prompt_lookup_num_tokens": 5}) for config in configs]
circles = [prompt[:7] * 9 for prompt in prompts]
for i in range(12):
    llm.generate(circles[i : i + 1], drafted[i : i + 1])
llm.generate(circles, drafted)
assert llm.engine.stats().drafted_tokens
for i in range(12):  # alone, and with others
    llm.generate(prompts[i : i + 1], configs[i : i + 1])
llm.generate(prompts, configs)
beams = [GenerationConfig(max_new_tokens=20, num_beams=2 + i % 8) for i in range(40)]
llm.generate(prompts[:40], beams)
assert llm.engine.stats().copies_on_write
assert not compiled, compiled
"""


def test_nothing_is_compiled_while_serving(tmp_path: Path) -> None:
    """In a process of its own, which no other test has compiled kernels for."""
    model = tiny_llama(tmp_path, hidden=256, heads=4, kv_heads=2)
    for dtype in ("bfloat16", "float32"):
        run_script(_SERVE, str(model), dtype, timeout=110, OMP_NUM_THREADS="2")
