"""Paged attention against softmax(scale · Q Kᵀ) V in float64, with windows, soft caps and sinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from server.ops.attention import AttentionShape
from server.ops.cpu.attention import NativeAttention
from server.ops.cpu.library import NativeLibrary
from tests.ops.cpu.scenes import LAYER, LAYERS, Scene, random_angles
from tests.ops.shapes import attention_shape, attention_spec

OF_TILES = 5 / 3
"""How much further off spans may be on tile registers, which take the queries and the weights of softmax in
bfloat16 as well: a query's rounding moves a score of 20 by some 0.03, and by as much of itself its weight."""


def check(library: NativeLibrary, scene: Scene, tolerance: float) -> None:
    """Attend, write nothing but the new slots, and read nothing that no window sees."""
    shape = scene.shape
    spec = shape.layers[LAYER]
    angles = random_angles(shape.head_dim)
    tokens = sum(scene.fresh)
    query = torch.randn(tokens, shape.num_heads, shape.head_dim)
    key, value = (torch.randn(tokens, shape.num_kv_heads, shape.head_dim) for _ in range(2))
    sinks = torch.randn(shape.num_heads) * 3 if spec.sinks else None
    expected = scene.expected(query, key, value, angles, sinks)
    batch = scene.batch()
    if spec.window is not None:
        scene.forget_before(spec.window, batch)
    before = scene.cache.clone()
    backend = NativeAttention(shape, [angles], scene.cache, library)
    backend.prepare(batch)
    found = backend.forward(LAYER, query, key, value, sinks)
    errors = (found.double() - expected).abs().amax(1)
    decodes = sum(scene.fresh[: scene.num_decodes])
    assert (errors[:decodes] < tolerance).all()
    if not backend.chunks_like_decodes:
        tolerance *= OF_TILES
    assert (errors[decodes:] < tolerance).all()
    stored = scene.cache[batch.slot_blocks, LAYER, 1, batch.slot_offsets]
    assert torch.equal(stored, value.to(shape.dtype))
    scene.cache[batch.slot_blocks, LAYER, :, batch.slot_offsets] = before[
        batch.slot_blocks, LAYER, :, batch.slot_offsets
    ]
    assert torch.equal(scene.cache.nan_to_num(7), before.nan_to_num(7)), "other slots were written"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"]
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size"),
    [(12, 4, 64, 16), (4, 2, 16, 8), (14, 2, 64, 16), (4, 4, 128, 32), (8, 1, 80, 7), (5, 1, 96, 1)],
)
def test_decodes_and_spans_of_every_shape(
    library: NativeLibrary,
    dtype: torch.dtype,
    tolerance: float,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
) -> None:
    torch.manual_seed(heads * head_dim)
    shape = attention_shape(heads, kv_heads, head_dim, block_size, dtype)
    decodes = [1, 2, 15, 16, 17, 63, 64, 65, 129, 300]
    prompts = [(1, 1), (16, 16), (33, 33), (129, 129), (200, 3), (310, 150), (257, 1)]
    lengths = decodes + [length for length, _ in prompts]
    fresh = [1] * len(decodes) + [new for _, new in prompts]
    check(library, Scene(shape, lengths, fresh, len(decodes)), tolerance)


@pytest.mark.parametrize(("lengths", "decodes"), [([40, 41], 2), ([300], 0)])
def test_decodes_alone_and_a_prompt_alone(library: NativeLibrary, lengths: list[int], decodes: int) -> None:
    torch.manual_seed(1)
    shape = attention_shape(6, 2, 32, 16, torch.float32)
    fresh = [1] * decodes if decodes else lengths
    check(library, Scene(shape, lengths, fresh, decodes), 2e-5)


def test_scores_far_apart_do_not_overflow(library: NativeLibrary) -> None:
    """Softmax over scores of thousands is that of its largest."""
    torch.manual_seed(2)
    shape = attention_shape(4, 2, 64, 16, torch.float32)
    scene = Scene(shape, [200, 190], [1, 190], 1)
    scene.cache *= 300.0
    check(library, scene, 2e-2)


SIZE = 16
WINDOWS = [1, 3, SIZE - 1, SIZE, SIZE + 1, 100, 1000]


def check_mixed(
    library: NativeLibrary, heads: tuple[int, int, int], dtype: torch.dtype, tolerance: float, **fields: Any
) -> None:
    """Sequences that decode one token or drafts, prompts whole and with tokens before them."""
    shape = attention_shape(*heads, SIZE, dtype)
    layers = tuple(replace(layer, **fields) for layer in shape.layers)
    lengths = [1, 15, 16, 17, 64, 129, 300, 33, 200, 40, 200, 150, 310]
    fresh = [1, 1, 1, 1, 1, 1, 1, 5, 4, 40, 200, 3, 150]
    check(library, Scene(replace(shape, layers=layers), lengths, fresh, num_decodes=9), tolerance)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", [(4, 2, 32), (5, 1, 64), (2, 2, 80)], ids=str)
def test_windows(library: NativeLibrary, heads: tuple[int, int, int], window: int) -> None:
    """What lies before a window is neither in the sum nor read."""
    torch.manual_seed(window)
    check_mixed(library, heads, torch.float32, 2e-5, window=window)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("softcap", [None, 2.0, 30.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=["f32", "bf16"]
)
def test_soft_caps_and_sinks(
    library: NativeLibrary,
    dtype: torch.dtype,
    tolerance: float,
    sinks: bool,
    softcap: float | None,
    window: int | None,
) -> None:
    torch.manual_seed(4)
    fields = {"scale": 0.7, "window": window, "softcap": softcap, "sinks": sinks}
    check_mixed(library, (6, 2, 48), dtype, tolerance, **fields)


@pytest.mark.parametrize("seed", range(6))
def test_random_steps(library: NativeLibrary, seed: int) -> None:
    torch.manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, ()))

    sizes = (4, draw(1, 2) * 2, 16 * draw(1, 4))
    spec = attention_spec(
        *sizes, window=draw(1, 150), softcap=[None, 5.0][draw(0, 1)], sinks=bool(draw(0, 1))
    )
    shape = AttentionShape((spec,) * LAYERS, draw(1, 20), torch.float32)
    decodes = draw(0, 5)
    fresh = [draw(1, 4) for _ in range(decodes)] + [draw(1, 200) for _ in range(draw(1, 3))]
    check(library, Scene(shape, [new + draw(0, 300) for new in fresh], fresh, decodes), 2e-5)


def test_heads_that_turn_in_part_or_not_at_all(library: NativeLibrary) -> None:
    """The numbers of a head that no rotary embedding turns stay as they are."""
    torch.manual_seed(6)
    for size in (0, 24):
        spec = attention_spec(2, 1, 64, rotary=0 if size else None)
        shape = AttentionShape((spec,) * LAYERS, SIZE, torch.float32)
        scene = Scene(shape, [40, 60], [1, 60], 1)
        angles = random_angles(size)
        inputs = [torch.randn(61, heads, 64) for heads in (2, 1, 1)]
        expected = scene.expected(*inputs, angles)
        backend = NativeAttention(shape, [angles] if size else [], scene.cache, library)
        backend.prepare(scene.batch())
        assert (backend.forward(LAYER, *inputs).double() - expected).abs().max() < 2e-5


def test_a_sink_above_every_score_takes_nearly_all(library: NativeLibrary) -> None:
    torch.manual_seed(5)
    shape = AttentionShape((attention_spec(2, 2, 32, sinks=True),) * LAYERS, SIZE, torch.float32)
    scene = Scene(shape, [40, 60], [1, 60], 1)
    backend = NativeAttention(shape, [random_angles(32)], scene.cache, library)
    backend.prepare(scene.batch())
    found = backend.forward(LAYER, *(torch.randn(61, 2, 32) for _ in range(3)), torch.tensor([1e4, 60.0]))
    first, second = found.view(61, 2, 32).unbind(1)
    assert first.abs().max() < 1e-30
    assert 0 < second.abs().max() < 1e-10
