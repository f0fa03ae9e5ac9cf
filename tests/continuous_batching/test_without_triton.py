"""The engine starts where torch came without Triton, as its CPU build does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.modules["triton"] = None  # its import fails
from protocol.generation import GenerationConfig
from server.continuous_batching.llm import LLM
(answer,) = LLM(sys.argv[1], model_loading_config={"torch_dtype": "float32", "device": "cpu"},
                cache_config={"num_blocks": 16, "num_blocks_cpu": 0}).generate(
    [[5, 6, 7]], GenerationConfig(max_new_tokens=3, no_repeat_ngram_size=2, ignore_eos=True))
assert len(answer.answers[0].token_ids) == 3
"""


def test_the_engine_needs_no_triton(tiny_model: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.returncode == 0, done.stderr
