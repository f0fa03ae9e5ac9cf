"""Decodes that begin with the same blocks: their leader attends to these for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from server.ops.paged_attention import PagedBatch
from server.ops.triton import decode_attention as triton_decode
from server.ops.triton.attention import FixedOrderAttention, TritonAttention
from server.ops.triton.decode_attention import SHARED, Tuning
from tests.ops.shapes import attention_shape
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.scenes import TOLERANCE, paged_batch, reference, rotary_of, share

# a program may have no tokens of its own, and what it would hand in for them is not a number
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.*")

BLOCK = 16


def attend(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int], batch: PagedBatch
) -> tuple[float, float]:
    """(relative error of what a second layer attends to, launched twice; of its cache afterwards).

    What followers have in the place of a prefix is not theirs to read: it is not a number.
    """
    num_heads, kv_heads, head_dim = heads
    unread = batch.tables.numel()
    cache = torch.randn((unread + 1, 2, 2, BLOCK, kv_heads, head_dim), device=device).to(dtype)
    count = len(batch.rows)
    joint = torch.randn(count, num_heads + 2 * kv_heads, head_dim, device=device).to(dtype)
    query, key, value = torch.split(joint, [num_heads, kv_heads, kv_heads], 1)
    rotary = rotary_of(head_dim, dtype, device)
    expected, stored = reference(query, key, value, rotary, cache[:, 1], batch)
    shared = batch.shared
    assert shared is not None
    cache[unread] = stored[unread] = float("nan")
    for row, prefix, n in zip(
        batch.rows.long(), shared.tokens.tolist(), shared.sharers.tolist(), strict=True
    ):
        if n < 0:
            batch.tables[row, : prefix // BLOCK] = unread
    backend = TritonAttention(attention_shape(num_heads, kv_heads, head_dim, BLOCK, dtype), [rotary], cache)
    backend.prepare(batch)
    found = torch.stack([backend.forward(1, query, key, value) for _ in range(2)])
    expected = expected.expand(2, *expected.shape)
    return (
        relative_error(found.view(2, count, num_heads, head_dim), expected),
        relative_error(cache[:unread, 1], stored[:unread]),
    )


RUNS: dict[tuple[int, int, int], list[tuple[int, list[int]]]] = {
    (4, 2, 64): [
        (0, [9]),
        (16, [16, 17, 40]),
        (0, [0]),
        (128, [128, 199, 150, 151, 152, 153, 154, 155]),
        (0, [63]),
    ],
    (10, 2, 80): [(64, [70, 64, 199]), (0, [130]), (16, [20, 21])],
    (8, 1, 128): [(176, [180, 190]), (16, [150, 31]), (0, [100])],
}
"""By heads, key heads and head size: as many in a run as a tile has room for, and fewer."""


@pytest.mark.parametrize(
    ("tuning", "dtype"), [(SHARED, torch.float32), (SHARED, HALF), (Tuning(2048, 1024, 1), HALF)]
)
@pytest.mark.parametrize("programs", [1, 4096])
@pytest.mark.parametrize("heads", RUNS)
def test_prefixes_are_attended_to_by_leaders(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    heads: tuple[int, int, int],
    programs: int,
    tuning: Tuning,
    dtype: torch.dtype,
) -> None:
    for table in ("PLAIN", "SHARED"):
        tuned = replace(tuning, programs=programs)
        monkeypatch.setattr(triton_decode, table, {0: tuned} if table == "PLAIN" else tuned)
    batch = paged_batch([at for _, places in RUNS[heads] for at in places], [], BLOCK, device)
    share(batch, [(len(places), prefix) for prefix, places in RUNS[heads]], BLOCK)
    errors, stored = attend(device, dtype, heads, batch)
    assert errors < TOLERANCE[dtype]
    assert stored < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "most"), [(32, 8, 4), (8, 8, 16), (40, 8, 3), (64, 4, 1), (71, 1, 1)]
)
def test_how_many_may_share(heads: int, kv_heads: int, most: int) -> None:
    cache = torch.empty((1, 1, 2, BLOCK, kv_heads, 64))
    shape = attention_shape(heads, kv_heads, 64, BLOCK, torch.float32)
    assert TritonAttention(shape, [], cache).most_sharers == most
    assert FixedOrderAttention(shape, [], cache).most_sharers == 1, "bits are not to depend on others"
