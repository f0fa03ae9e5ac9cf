"""Draft heads by a GPU's kernels, in Triton's interpreter, guess what the plain reference does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.ops.triton.attention import TritonAttention
from server.ops.triton.layer_ops import TritonLayerOps
from tests.continuous_batching import heads, overlapped
from tests.continuous_batching.heads import drafting
from tests.continuous_batching.test_draft_head import PROMPTS, check, reference


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize("kind", ["eagle3", "mimo"])
@pytest.mark.parametrize("replayed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_kernels_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, replayed: bool) -> None:
    """Of the model and of the head, launched and replayed."""
    monkeypatch.setattr(overlapped, "LayerOps", TritonLayerOps)
    monkeypatch.setattr(overlapped, "PagedTorchAttention", TritonAttention)
    monkeypatch.setattr("server.worker.head_runner.CapturedCalls", overlapped.RecordedCalls)
    if kind == "eagle3":
        model, head = heads.llama(tmp_path / "model"), heads.eagle3(tmp_path / "head")
    else:
        model = head = heads.mimo(tmp_path)
    sizes = {"block_size": 16, "max_length": 100, "beams": 4, "tokens": 16, "chunk": 8}
    speculation = heads.speculation_by(head, 3)
    llm = overlapped.overlapped_llm(model, monkeypatch, num_blocks=40, speculation=speculation, **sizes)
    if replayed:
        drafting(llm).runner.capture(16)
    assert check(llm, reference(model, head), [PROMPTS[2], [7]], length=8) == {0}
