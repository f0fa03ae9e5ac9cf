"""Experts in Triton, and transformers' modules, in the engine that plans ahead of tokens, as on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.ops.layer_ops import LayerOps
from server.ops.paged_attention import PagedAttention
from server.ops.triton.attention import TritonAttention
from server.ops.triton.layer_ops import TritonLayerOps
from tests.continuous_batching import overlapped
from tests.continuous_batching.reference import Reference, mixed_requests
from tests.continuous_batching.test_exactness import assert_exact
from tests.models.small_models import EVEN, EXPERTS, MODELS, save

CASES: dict[str, tuple[str, dict[str, Any], LayerOps, type[PagedAttention]]] = {
    "qwen2-moe": (*MODELS["qwen2-moe"], TritonLayerOps(), overlapped.PagedTorchAttention),
    "arcee": ("arcee", EVEN, LayerOps(), TritonAttention),
    "granitemoe": ("granitemoe", EVEN | EXPERTS, LayerOps(), overlapped.PagedTorchAttention),
}


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_transformers(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, fields, layer_ops, attention = CASES[case]
    path = save(tmp_path, kind, fields)
    reference = Reference(path)
    monkeypatch.setattr(overlapped, "LayerOps", lambda: layer_ops)
    monkeypatch.setattr(overlapped, "PagedTorchAttention", attention)
    llm = overlapped.overlapped_llm(
        path, monkeypatch, num_blocks=40, block_size=8, max_length=200, chunk=13, tokens=40, beams=8
    )
    requests = mixed_requests(reference, 4, seed=5, longest=6, longest_prompt=30)
    requests = [(prompt, options.model_copy(update={"stop": []})) for prompt, options in requests]
    assert_exact(llm, reference, requests)
