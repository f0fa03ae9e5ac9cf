"""A row's bits depend on nothing but its own tokens: not on the rows beside it, nor on borders of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from server.layers.linear import Linear, LinearLayer
from server.ops.attention import AttentionBatch, AttentionShape, ChunkSpan
from server.ops.cpu.attention import NativeAttention
from server.ops.cpu.library import NativeLibrary
from server.ops.cpu.weights import PackedWeights
from tests.ops.cpu.scenes import LAYER, LAYERS, random_angles
from tests.ops.cpu.test_gptq import layer_of
from tests.ops.shapes import attention_spec
from tests.quantization.checkpoints import Form

TOKENS = 150
ROWS = (*range(1, 10), 13, 16, 17, 23, 33, 100)
Attend = Callable[[list[int], bool], tuple[Tensor, Tensor]]


def attend_with(library: NativeLibrary, shape: AttentionShape) -> Attend:
    """A function that computes one sequence in steps that end at `borders`, each one chunk or all decodes; it
    returns what was attended and the cache."""
    torch.manual_seed(3)
    angles = random_angles(shape.head_dim)
    query = torch.randn(TOKENS, shape.num_heads, shape.head_dim) * 2
    key, value = (torch.randn(TOKENS, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    sinks = torch.randn(shape.num_heads) if shape.layers[LAYER].sinks else None
    size = shape.block_size
    table = torch.randperm(-(-TOKENS // size))

    def attend(borders: list[int], as_decodes: bool) -> tuple[Tensor, Tensor]:
        cache = torch.zeros(len(table), LAYERS, 2, size, shape.num_kv_heads, shape.head_dim).to(shape.dtype)
        backend, rows = NativeAttention(shape, [angles], cache, library), []
        for start, end in pairwise([0, *borders, TOKENS]):
            places, decodes = torch.arange(start, end), end - start if as_decodes else 0
            chunks = [] if as_decodes else [ChunkSpan(0, end - start, start, table.clone())]
            lengths = (places + 1).numpy()[:decodes].astype(np.int64)
            tables = table.expand(decodes, -1).contiguous()
            blocks = table[places // size]
            backend.prepare(AttentionBatch(places, blocks, places % size, lengths, tables, chunks))
            part = slice(start, end)
            rows.append(backend.forward(LAYER, query[part], key[part], value[part], sinks))
        return torch.cat(rows), cache

    return attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"), [(12, 4, 64, 16), (5, 1, 80, 7), (2, 2, 128, 32)]
)
@pytest.mark.parametrize(
    "fields",
    [{}, {"window": 21}, {"window": 64, "softcap": 2.0, "sinks": True}],
    ids=["plain", "window", "all"],
)
def test_attention_alike_in_chunks_and_decodes(
    library: NativeLibrary,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    fields: dict[str, Any],
) -> None:
    spec = attention_spec(heads, kv_heads, head_dim, **fields)
    attend = attend_with(library, AttentionShape((spec,) * LAYERS, block_size, dtype))
    decoded, cache = attend([], True)
    one_by_one = attend(list(range(1, TOKENS)), True)
    assert torch.equal(one_by_one[0], decoded) and torch.equal(one_by_one[1], cache)
    whole, _ = attend([], False)
    assert torch.equal(whole, decoded) == library.computes_chunks_like_decodes(dtype)
    for borders in ([1, 2, 63], list(range(5, TOKENS, 5)), [64, 128], [100]):
        chunked, cache = attend(borders, False)
        assert torch.equal(chunked, whole), f"chunks that end at {borders}"


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(
    "form",
    [None, Form(group_size=128, version=2), Form(group_size=-1, sym=False, version=2)],
    ids=["dense", "groups of 128", "one group with zero points"],
)
def test_products_alike_in_any_company(
    library: NativeLibrary, dtype: torch.dtype, form: Form | None, tmp_path: Path
) -> None:
    inputs, outputs = 384, 40
    torch.manual_seed(4)
    if form is None:
        layer: LinearLayer = Linear(inputs, outputs, dtype=dtype, device=torch.device("cpu"))
        torch.nn.init.normal_(layer.weight)
    else:
        layer = layer_of(form, tmp_path, inputs, outputs)
    weights = PackedWeights(library, [layer])
    matrix = weights.pack(layer)
    x = torch.randn(max(ROWS), inputs)
    whole = library.multiply(dtype, matrix, outputs, x)
    for rows in ROWS:
        for first in (0, max(ROWS) - rows):
            part = library.multiply(dtype, matrix, outputs, x[first : first + rows].contiguous())
            assert torch.equal(part, whole[first : first + rows]), f"{rows} rows from {first}"
