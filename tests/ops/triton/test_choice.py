"""Which attention backend a model gets on a GPU, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.ops.choose import choose_backend
from tests.ops.shapes import model_of


def test_a_backend_chosen_by_name_runs_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wide, bf16 = model_of(4, 2, 64), model_of(4, 2, 256), torch.bfloat16
    with pytest.raises(ModelError, match="'flash' is for NVIDIA GPUs"):
        choose_backend(model, bf16, torch.device("cpu"), 16, "flash")
    cuda = torch.device("cuda")

    def attention(model: Any, block_size: int = 16, wanted: Any = "auto") -> dict[str, str]:
        return choose_backend(model, bf16, cuda, block_size, wanted).describe()["attention"]

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert attention(model, wanted="triton")["name"] == "triton"
    chosen = attention(model)
    assert chosen["name"] == "triton" and "compute capability 8.9" in chosen["reason"]
    with pytest.raises(ModelError, match=r"attention_backend 'flash' does not run here"):
        attention(model, wanted="flash")
    with pytest.raises(ModelError, match="blocks of 256 tokens or a multiple, not of 16"):
        attention(model, wanted="varlen")
    assert "heads of 16 to 128 numbers" in attention(wide)["reason"]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert attention(wide, wanted="triton")["name"] == "triton"
    with pytest.raises(ModelError, match="heads of 16 to 256 numbers, the model has 512"):
        attention(model_of(4, 2, 512), wanted="triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ModelError, match=r"compute capability 8\.0, the GPU has 7\.5"):
        attention(model, wanted="triton")
    assert "has 7.5" in attention(model)["reason"]


def test_what_no_backend_computes_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only some compute goes to these, and the reason says why not to the faster ones."""
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    both = model_of(4, 2, 64, causal=False, shares=0)
    for device in (cuda, torch.device("cpu"), torch.device("meta")):
        with pytest.raises(ModelError, match=r"attention to later tokens .*, keys and values of layer 0"):
            choose_backend(both, bf16, device, 16)
