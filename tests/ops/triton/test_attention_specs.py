"""Windows, soft caps, sinks and partial rotation of the attention kernels, against float64."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from server.layers.spec import AttentionSpec
from server.ops.attention import AttentionShape
from server.ops.paged_attention import QUERY_TILE, PagedBatch
from server.ops.triton import decode_attention as triton_decode
from server.ops.triton.attention import TritonAttention
from server.ops.triton.flash_attention import FlashAttention
from server.ops.triton.varlen_attention import VarlenAttention
from tests.ops.triton.checks import HALF, relative_error
from tests.ops.triton.documented_varlen import documented_varlen_attention
from tests.ops.triton.scenes import TOLERANCE, attend_over, paged_batch, rotary_of

SIZE = 16
NAN = float("nan")
SPEC = AttentionSpec(4, 2, 32, 32, scale=0.3)
# decodes of sequences of their own, then chunks: whole prompts, and with tokens before them
DECODES = [0, 2, 15, 16, 17, 130]
CHUNKS = [(0, 20), (33, 60), (5, 8)]


def rotated(x: Tensor, positions: Tensor, rotary: SimpleNamespace | None) -> Tensor:
    x = x.double().cpu()
    if rotary is None:
        return x
    size = rotary.cos.shape[1]
    cos, sin = (t.cpu().double()[positions].unsqueeze(1) for t in (rotary.cos, rotary.sin))
    first, second = x[..., :size].chunk(2, -1)
    turned = x[..., :size] * cos + torch.cat((-second, first), -1) * sin
    return torch.cat((turned, x[..., size:]), -1)


def reference(
    spec: AttentionSpec,
    joint: tuple[Tensor, ...],
    rotary: SimpleNamespace | None,
    cache: Tensor,
    batch: PagedBatch,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(attended [tokens, heads, head_dim], layer's cache afterwards), in float64 on the CPU."""
    positions, rows, tables = batch.positions.long().cpu(), batch.rows.long().cpu(), batch.tables.long().cpu()
    query, key, value = joint
    size = cache.shape[2]
    query, stored = rotated(query, positions, rotary), cache.clone().cpu()
    blocks = tables[rows, positions // size]
    stored[blocks, 0, positions % size] = rotated(key, positions, rotary).to(cache.dtype)
    stored[blocks, 1, positions % size] = value.cpu()
    return attend_over(query, stored, batch, spec, sinks), stored


def forget_before(window: int, cache: Tensor, batch: PagedBatch, spoil: float) -> None:
    """Spoil what no window of a sequence sees, and make table entries of blocks before it unreadable."""
    rows, positions, size = batch.rows.long().cpu(), batch.positions.long().cpu(), cache.shape[3]
    for row in rows.unique():
        first = max(0, int(positions[rows == row].min()) - window + 1)
        table = batch.tables[row].long()
        cache[table[: first // size]] = spoil
        cache[table[first // size], :, :, : first % size] = spoil
        batch.tables[row, : first // size] = -(10**6)


def check(
    device: torch.device,
    spec: AttentionSpec,
    dtype: torch.dtype = torch.float32,
    decodes: list[int] = DECODES,
    chunks: list[tuple[int, int]] = CHUNKS,
    rotary_dim: int = 32,
    kind: type[TritonAttention] = TritonAttention,
    block_size: int = SIZE,
    spoil: float = NAN,
) -> None:
    torch.manual_seed(spec.window or 0)
    batch = paged_batch(decodes, chunks, block_size, device)
    layers, layer = 2, 1
    shape = (batch.tables.numel(), layers, 2, block_size, spec.num_kv_heads, spec.head_dim)
    cache = torch.randn(shape, device=device).to(dtype)
    tokens, heads = len(batch.rows), [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
    joint = torch.split(torch.randn(tokens, sum(heads), spec.head_dim, device=device).to(dtype), heads, 1)
    rotary = rotary_of(rotary_dim, dtype, device)
    angles = None if spec.rotary is None else rotary
    sinks = torch.randn(spec.num_heads, device=device) * 3 if spec.sinks else None
    expected, stored = reference(spec, joint, angles, cache[:, layer], batch, sinks)
    places = batch.positions.long()
    blocks = batch.tables[batch.rows.long(), places // block_size].long()
    if spec.window is not None:
        forget_before(spec.window, cache, batch, spoil)

    backend = kind(AttentionShape((spec,) * layers, block_size, dtype), [rotary], cache)
    backend.prepare(batch)
    output = backend.forward(layer, *joint, sinks)

    tolerance = TOLERANCE[dtype] if spec.softcap is None else 3 * TOLERANCE[dtype]
    assert relative_error(output.view(tokens, spec.num_heads, -1), expected) < tolerance
    written = cache[:, layer].transpose(1, 2)[blocks, places % block_size]
    expected = stored.transpose(1, 2)[blocks.cpu(), places.cpu() % block_size]
    assert relative_error(written, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [1, 3, SIZE - 1, SIZE, SIZE + 1, 100, 1000])
def test_windows(device: torch.device, window: int) -> None:
    check(device, replace(SPEC, window=window))


@pytest.mark.parametrize("by_warps", [False, True])
def test_windows_that_begin_within_pieces_and_tiles(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, by_warps: bool
) -> None:
    tiles_of_16_keys = triton_decode.Tuning(512, 4096, 1 if by_warps else 4, by_warps=by_warps)
    monkeypatch.setattr(triton_decode, "PLAIN", {0: tiles_of_16_keys})
    spec = replace(SPEC, window=50, sinks=True, softcap=2.0 if by_warps else None)
    check(device, spec, HALF, [12, 49, 50, 51, 97, 199], [(10, 20 + QUERY_TILE)])


def test_windows_far_shorter_than_a_tile_of_queries(device: torch.device) -> None:
    """The first tiles of keys are before the windows of the last queries."""
    check(device, replace(SPEC, window=5), torch.float32, [], [(40, 40 + QUERY_TILE + 9)])


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [False, True])
def test_soft_caps_and_sinks(
    device: torch.device, sinks: bool, softcap: float | None, window: int | None
) -> None:
    check(device, replace(SPEC, window=window, softcap=softcap, sinks=sinks))


@pytest.mark.parametrize("rotary_dim", [None, 16, 24])
def test_heads_that_turn_in_part_or_not_at_all(device: torch.device, rotary_dim: int | None) -> None:
    if rotary_dim is None:
        check(device, replace(SPEC, rotary=None))
    else:
        check(device, SPEC, rotary_dim=rotary_dim)


LONG = replace(SPEC, head_dim=64, value_dim=64)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [5, 20, 1000])
def test_flash_attention(device: torch.device, window: int, softcap: float | None) -> None:
    try:
        FlashAttention.check_library()
    except ImportError as error:
        pytest.skip(str(error))
    spec = replace(LONG, window=window, softcap=softcap)
    check(device, spec, HALF, rotary_dim=64, kind=FlashAttention, spoil=100.0)


@pytest.mark.parametrize("window", [5, 20, 1000])
def test_varlen_attention(device: torch.device, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    if not torch.cuda.is_available():  # what its documentation says of it stands in
        module = "server.ops.triton.varlen_attention.varlen_attention"
        monkeypatch.setattr(module, lambda: documented_varlen_attention)
    else:
        try:
            VarlenAttention.check_library()
        except ImportError as error:
            pytest.skip(str(error))
    spec = replace(LONG, window=window)
    check(device, spec, HALF, rotary_dim=64, kind=VarlenAttention, block_size=256, spoil=100.0)
