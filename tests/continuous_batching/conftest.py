"""How the engine's tests compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import tiny_llama
from tests.continuous_batching.drafts import KINDS, PROMPT, options
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.reference import Reference


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from several threads, and lose much where other work runs beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def looping_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that mostly says one of some fifty tokens, the next one following from the last:
    it soon walks in circles, and leaves them now and then."""
    from transformers import AutoModelForCausalLM

    path = tiny_llama(tmp_path_factory.mktemp("looping"))
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.05
            layer.mlp.down_proj.weight *= 0.05
        model.lm_head.weight[200:250] *= 3.0
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="package")
def looping(looping_model: Path) -> Reference:
    return Reference(looping_model)


@pytest.fixture(scope="package")
def plain(looping_model: Path) -> dict[str, list[list[int]]]:
    """Answers without drafts."""
    driver = Driver(small_llm(looping_model))
    for kind in KINDS:
        driver.add(kind, PROMPT, options(kind, 0))
    driver.finish()
    return {kind: driver.answers(kind) for kind in KINDS}
