"""torch's attention over sequences of unequal length: what it is told, and, on a GPU, the real one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from server.ops.triton.varlen_attention import VarlenAttention, varlen_attention
from tests.ops.triton.checks import HALF
from tests.ops.triton.documented_varlen import documented_varlen_attention
from tests.ops.triton.scenes import check

VARLEN_STEPS: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([0, 15, 130], [(0, 20), (33, 180), (7, 8)]),
    ([], [(0, 200), (0, 1)]),
]


def test_varlen_attention(device: torch.device) -> None:
    try:
        varlen_attention()
    except ImportError as error:
        pytest.skip(str(error))
    for heads in [(4, 2, 64), (8, 1, 128)]:
        for decodes, chunks in VARLEN_STEPS:
            check(device, HALF, heads, 256, decodes, chunks, VarlenAttention)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the real thing")
@pytest.mark.parametrize(("decodes", "chunks"), VARLEN_STEPS)
def test_varlen_attention_is_told_what_its_documentation_asks_for(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, decodes: list[int], chunks: list[tuple[int, int]]
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if "block_table" not in inspect.signature(varlen.varlen_attn).parameters:
        pytest.skip("torch 2.12 has the first block tables")

    def without_content(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) else value

    def attend(*args: Any, **options: Any) -> Tensor:
        shapes = {name: without_content(value) for name, value in options.items()}
        real = varlen.varlen_attn(*map(without_content, args), **shapes)
        assert (real.shape, real.dtype) == (args[0].shape, args[0].dtype)
        return documented_varlen_attention(*args, **options)

    module = "server.ops.triton.varlen_attention.varlen_attention"
    monkeypatch.setattr(module, lambda: attend)
    check(device, HALF, (4, 2, 64), 256, decodes, chunks, VarlenAttention)
