"""A model split over two GPUs gives the tokens that transformers gives on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from server.continuous_batching import LLM
from tests.checkpoints import tiny_llama
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.quantization.models import dequantized, quantized

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # heads of 64: a size that the kernels are made for
    return tiny_llama(tmp_path_factory.mktemp("tiny"), hidden=256, heads=4, kv_heads=2)


def split_llm(path: Path, *, dtype: str = "float32", quantization: str = "none", **cache: Any) -> LLM:
    loading = {"torch_dtype": dtype, "model_max_length": 1024, "quantization": quantization}
    return LLM(
        path,
        model_loading_config=loading,
        batcher_config={"batch_max_tokens": 256, "batch_max_beams": 96},
        cache_config={"num_blocks": 2000, "num_blocks_cpu": 250, "block_size": 16, **cache},
        parallel_config={"tensor_parallel_size": "auto" if torch.cuda.device_count() == 2 else 2},
    )


@pytest.mark.parametrize("pressure", [False, True])
def test_mixed_requests(model: Path, pressure: bool) -> None:
    reference = Reference(model)
    requests = mixed_requests(reference, 40, seed=3, longest=120)
    needs = [c.num_rows * (len(p) + c.max_new_tokens) // 16 + c.num_rows for p, c in requests]
    llm = split_llm(model, num_blocks=max(needs) if pressure else 2000)
    ranks = llm.capabilities["ranks"]
    assert ranks["collectives"]["name"] == "peer memory, nccl" and ranks["devices"] == ["cuda:0", "cuda:1"]
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)
    llm.engine.check()
    assert llm.engine.stats().step_failures == 0
    assert (llm.engine.stats().preempted_by_swap > 0) == pressure


def test_gptq(model: Path, tmp_path: Path) -> None:
    path = quantized(model, tmp_path / "gptq", group_size=32)
    reference = Reference(dequantized(path, tmp_path / "float"))
    requests = mixed_requests(reference, 10, seed=5, longest=20)
    llm = split_llm(path, quantization="gptq")
    generations = llm.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)
