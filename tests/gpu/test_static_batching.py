"""The static-batching server on CUDA gives the tokens that transformers gives on the CPU, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protocol.generation import GenerationConfig
from server.static_batching.pipeline import StaticPipeline
from tests.checkpoints import tiny_llama
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.sampling.draws import worst_miss


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_mixed_requests(model: Path, low_cpu_mem_usage: bool) -> None:
    reference = Reference(model)
    requests = mixed_requests(reference, 30, seed=4, longest=60)
    worker = {"device": "cuda", "torch_dtype": "float32", "low_cpu_mem_usage": low_cpu_mem_usage}
    pipeline = StaticPipeline(model, worker_config=worker, batcher_config={"package_max_workload": 32})
    assert pipeline.capabilities["device"]["name"] == "cuda:0"
    generations = pipeline.generate([p for p, _ in requests], [c for _, c in requests])
    assert not reference.contradicted(requests, generations)


def test_seeded_samples_do_not_depend_on_the_package(model: Path) -> None:
    """But for numbers within rounding of the border between two tokens: other packages, other roundings."""
    pipeline = StaticPipeline(model, worker_config={"device": "cuda", "torch_dtype": "float32"})
    prompts = [[5 + s, 7, 9] * (1 + s % 5) for s in range(8)]
    configs = [GenerationConfig(max_new_tokens=8, do_sample=True, seed=s) for s in range(8)]
    together = [g.answers[0].token_ids for g in pipeline.generate(prompts, configs)]
    alone = [
        pipeline.generate([p], [c])[0].answers[0].token_ids for p, c in zip(prompts, configs, strict=True)
    ]
    reference = Reference(model).model
    assert worst_miss(reference, prompts, configs, together) < 1e-3
    assert worst_miss(reference, prompts, configs, alone) < 1e-3
    assert torch.cuda.memory_allocated() > 0
