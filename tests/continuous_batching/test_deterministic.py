"""Answers of engines with sums of one order are the same in any company: GPU kernels in the interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.continuous_batching import LLM, loaded_model
from server.ops.backend import AttentionChoice
from server.ops.triton.attention import FixedOrderAttention
from server.ops.triton.fixed_order import FixedOrderBackend
from tests.checkpoints import tiny_llama
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.ops.triton.ordered import add_in_order

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="benchmarks.gpu.deterministic does it there"
)

PROMPTS = [[(13 * i + 5 * j) % 500 + 3 for i in range(length)] for j, length in enumerate((5, 18))]
TOKENS = 4


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes engines, whose chunks and number of blocks may be chosen."""
    add_in_order(monkeypatch)
    choice = AttentionChoice("triton", FixedOrderAttention, FixedOrderAttention.capabilities, "a test")
    monkeypatch.setattr(loaded_model, "choose_backend", lambda *_, **__: FixedOrderBackend(choice))
    path = tiny_llama(tmp_path, hidden=64, heads=2, kv_heads=1)

    def engine(chunk: int = 64, num_blocks: int = 60) -> LLM:
        return small_llm(path, dtype="float16", beams=4, chunk=chunk, num_blocks=num_blocks, max_length=128)

    return engine


def ask(driver: Driver, index: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "ignore_eos": True, "logprobs": 1}
    if index:
        options |= {"do_sample": True, "seed": index}
    driver.add(f"{index}", PROMPTS[index], options)


def told(driver: Driver) -> list[Any]:
    driver.finish()
    return [driver.answers(f"{index}") for index in range(len(PROMPTS))]


def test_alone_and_in_a_batch(make: Any) -> None:
    llm = make()
    promise = llm.capabilities["same_bits"]
    assert promise["promised"] and "decoded again" in promise["reason"]
    driver = Driver(llm)
    for index in range(len(PROMPTS)):
        ask(driver, index)
        driver.finish()
    alone = told(driver)
    together = Driver(llm)
    llm.engine.scheduler.limits = replace(llm.engine.scheduler.limits, chunk_tokens=7)
    for index in range(len(PROMPTS)):
        ask(together, index)
    assert told(together) == alone


def test_on_a_cpu_it_always_holds_or_is_refused(tiny_model: Path) -> None:
    def load(dtype: str) -> LLM:
        loading = {"torch_dtype": dtype, "device": "cpu", "model_max_length": 64, "deterministic": True}
        return LLM(tiny_model, model_loading_config=loading, cache_config={"num_blocks": 8})

    assert load("bfloat16").capabilities["same_bits"]["promised"]
    with pytest.raises(ModelError, match=r"deterministic cannot be honoured: sums of .* follow the number"):
        load("float16")
