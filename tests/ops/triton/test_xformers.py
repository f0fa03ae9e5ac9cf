"""Decodes by xformers' operator: what it is told, and, where it is installed, the operator itself."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.ops.choose import choose_backend
from server.ops.triton import xformers_attention
from server.ops.triton.xformers_attention import XformersAttention
from tests.ops.shapes import model_of
from tests.ops.triton.checks import HALF
from tests.ops.triton.scenes import check

STEPS: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([0, 63, 64, 130, 199], []),
    ([5, 65, 127], [(0, 20), (33, 180)]),
    ([], [(0, 100)]),
]


class PaddedKeys:
    """The mask that pages are made of, as far as the operator reads it."""

    def __init__(self, lengths: list[int]) -> None:
        self.k_seqinfo = SimpleNamespace(seqlen=torch.tensor(lengths, dtype=torch.int32))

    @classmethod
    def from_seqlens(cls, *, q_seqlen: list[int], kv_padding: int, kv_seqlen: list[int]) -> PaddedKeys:
        assert set(q_seqlen) == {1} and len(q_seqlen) == len(kv_seqlen)
        assert kv_padding >= max(kv_seqlen)
        return cls(kv_seqlen)

    def to(self, device: torch.device) -> PaddedKeys:
        return self

    def make_paged(self, block_tables: Tensor, page_size: int, paged_type: str) -> SimpleNamespace:
        assert block_tables.dtype == torch.int32 and paged_type == "paged"
        return SimpleNamespace(k_seqinfo=self.k_seqinfo, block_tables=block_tables, page_size=page_size)


def documented_operator(inputs: SimpleNamespace, *, needs_gradient: bool) -> tuple[Tensor, None]:
    """What xformers says of it, in float64: keys [1, tokens, groups, heads, size], pages of them by table."""
    mask = inputs.attn_bias
    assert not needs_gradient and inputs.query.shape[0] == inputs.key.shape[0] == 1
    assert inputs.key.shape[3] == 1 or inputs.key.stride(3) == inputs.value.stride(3) == 0
    assert inputs.key.stride() == inputs.value.stride() and inputs.key.stride(-1) == 1
    output = torch.empty(inputs.query.shape, dtype=inputs.query.dtype, device=inputs.query.device)
    for line, length in enumerate(mask.k_seqinfo.seqlen.tolist()):
        pages = mask.block_tables[line].long()[: -(-length // mask.page_size)]
        tokens = (pages[:, None] * mask.page_size + torch.arange(mask.page_size)).flatten()[:length]
        keys, values = inputs.key[0, tokens].double(), inputs.value[0, tokens].double()
        scores = torch.einsum("ghk,nghk->ghn", inputs.query[0, line].double(), keys) * inputs.scale
        output[0, line] = torch.einsum("ghn,nghk->ghk", scores.softmax(-1), values).to(output.dtype)
    return output, None


def make_inputs(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, scale: float) -> SimpleNamespace:
    return SimpleNamespace(query=query, key=key, value=value, attn_bias=attn_bias, scale=scale)


OPERATOR = SimpleNamespace(apply=documented_operator, Inputs=make_inputs, Padded=PaddedKeys, Paged="paged")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the real thing")
@pytest.mark.parametrize("heads", [(4, 2, 64), (2, 2, 16)])
@pytest.mark.parametrize("block_size", [64, 256])
def test_the_operator_is_told_where_tokens_are(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int, int], block_size: int
) -> None:
    monkeypatch.setattr(xformers_attention, "load_operator", lambda: OPERATOR)
    for decodes, chunks in STEPS if heads[2] == 64 else STEPS[:1]:
        check(device, HALF, heads, block_size, decodes, chunks, XformersAttention)


def test_the_operator_itself(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, where there is no GPU: `pip install --no-deps xformers==0.0.35` for it."""
    monkeypatch.setenv("XFORMERS_ENABLE_TRITON", "1")
    pytest.importorskip("xformers")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    for heads, block_size in [((4, 2, 64), 64), ((8, 1, 128), 256), ((2, 2, 64), 64)]:
        check(device, HALF, heads, block_size, [0, 63, 64, 130, 199], [(0, 20)], XformersAttention)


def test_what_it_does_not_take_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(xformers_attention, "load_operator", lambda: OPERATOR)
    model = model_of(4, 2, 64)
    chosen = choose_backend(model, bf16, cuda, 64, "xformers").describe()["attention"]
    assert chosen["name"] == "xformers"
    for of, dtype, block_size, said in [
        (model, bf16, 16, "blocks of 64 tokens or a multiple, not of 16"),
        (model, torch.float32, 64, "bfloat16 and float16, not float32"),
        (model_of(4, 2, 80), bf16, 64, "heads of 16, 32, 64, 128, 256 numbers, not 80"),
        (model_of(4, 2, 64, window=100), bf16, 64, "a window of 100 tokens"),
    ]:
        with pytest.raises(ModelError, match=f"attention_backend 'xformers' does not run here: .*{said}"):
            choose_backend(of, dtype, cuda, block_size, "xformers")
    with pytest.raises(ModelError, match="'xformers' is for NVIDIA GPUs"):
        choose_backend(model, bf16, torch.device("cpu"), 64, "xformers")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha", ModuleType("xformers.ops.fmha"))
    with pytest.raises(ModelError, match="'xformers' does not run here: "):
        choose_backend(model, bf16, cuda, 64, "xformers")
