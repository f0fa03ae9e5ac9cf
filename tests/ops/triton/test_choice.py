"""Which attention backend a model gets on a GPU, and what is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from server.checkpoints.errors import ModelError
from server.layers.spec import ExpertsSpec, FeedForwardSpec, NormSpec
from server.models.decoder import Decoder
from server.ops.choose import choose_backend
from server.quantization.linear import QuantizedLinear
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


def test_one_order_of_sums_or_a_reason_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    model = decoder()

    def refused(words: str, model: Decoder = model, dtype: torch.dtype = bf16, wanted: Any = "auto") -> None:
        with pytest.raises(ModelError, match=f"deterministic cannot be honoured: .*{words}"):
            choose_backend(model, dtype, cuda, 16, wanted, deterministic=True)

    backend = choose_backend(model, bf16, cuda, 16, deterministic=True)
    assert backend.same_bits and backend.describe()["attention"]["name"] == "triton"
    assert not choose_backend(model, bf16, cuda, 16).same_bits
    refused("'flash' promises no order", wanted="flash")
    refused("float16 and bfloat16, not of float32", dtype=torch.float32)
    refused("layer normalisation", decoder(NormSpec(1e-5, kind="layer")))
    refused(r"60 inputs are no multiple of 8", decoder(inner=60))
    refused("experts", decoder(experts=ExpertsSpec(4, 2)))
    foreign = decoder()
    foreign.computed_by = "transformers"
    refused("modules of transformers", foreign)
    quantized = decoder()
    quantized.layers[0].feed_forward.down = QuantizedLinear()  # type: ignore[union-attr]
    monkeypatch.setattr(QuantizedLinear, "format_name", "a test", raising=False)
    refused("format a test follow", quantized)
    capability = (10, 0)
    refused("for Hopper")
    with pytest.raises(ModelError, match="sums of torch follow the number of rows"):
        choose_backend(model, torch.float16, torch.device("meta"), 16, deterministic=True)


def decoder(norm: NormSpec | None = None, inner: int = 64, **fields: Any) -> Decoder:
    """Without its numbers."""
    spec = model_of(4, 2, 64).spec
    norm, feed_forward = norm or spec.norm, FeedForwardSpec(inner, **fields)
    layer = replace(spec.layers[0], feed_forward=feed_forward, attention_norm=norm, feed_forward_norm=norm)
    return Decoder(replace(spec, layers=(layer,), norm=norm), torch.bfloat16, torch.device("meta"))
