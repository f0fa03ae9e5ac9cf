"""Attention by torch's operations against float64: it is what other backends are compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from server.ops.torch.attention import TorchAttention
from tests.ops.cpu.test_attention import LAYER, Scene, random_angles
from tests.ops.shapes import attention_shape

BLOCK = 16


@pytest.mark.parametrize(
    "fields",
    [
        {},
        *({"window": window} for window in (1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 100, 1000)),
        {"softcap": 2.0},
        {"sinks": True},
        {"window": 20, "softcap": 2.0, "sinks": True, "scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [(6, 2, 20), (3, 3, 16)])
def test_decodes_and_chunks(heads: tuple[int, int, int], fields: dict[str, Any]) -> None:
    """Decodes of one token and of drafts, prompts whole and with tokens before; freed blocks are not read."""
    torch.manual_seed(heads[2])
    shape = attention_shape(*heads, BLOCK, torch.float32)
    shape = replace(shape, layers=tuple(replace(layer, **fields) for layer in shape.layers))
    lengths = [1, 15, 16, 17, 64, 129, 300, 33, 200, 40, 310]
    fresh = [1, 1, 1, 1, 1, 1, 1, 3, 5, 40, 150]
    scene = Scene(shape, lengths, fresh, num_decodes=9)
    angles, tokens = random_angles(heads[2]), sum(fresh)
    query = torch.randn(tokens, heads[0], heads[2])
    key, value = (torch.randn(tokens, heads[1], heads[2]) for _ in range(2))
    sinks = torch.randn(heads[0]) * 3 if fields.get("sinks") else None
    expected = scene.expected(query, key, value, angles, sinks)
    batch = scene.batch()
    if "window" in fields:
        scene.forget_before(fields["window"], batch)
        scene.cache.nan_to_num_(9.0)  # what is masked is multiplied by 0
    backend = TorchAttention(shape, [angles], scene.cache)  # type: ignore[list-item]
    angles.at = lambda at: (angles.cos[at].unsqueeze(1), angles.sin[at].unsqueeze(1))  # type: ignore[attr-defined]
    backend.prepare(batch)
    found = backend.forward(LAYER, query, key, value, sinks)
    assert (found.double() - expected).abs().max() < 2e-5
