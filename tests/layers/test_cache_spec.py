"""Which layers keep their keys and values together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.layers.cache_spec import CacheSpec, cache_places, cache_specs
from server.layers.spec import AttentionSpec, FeedForwardSpec, LayerSpec, NormSpec

ATTENTION = AttentionSpec(4, 2, 16, 16, 0.25)
LAYER = LayerSpec(ATTENTION, FeedForwardSpec(8), NormSpec(1e-5), NormSpec(1e-5))


def layers(*windows: int | None) -> list[LayerSpec]:
    return [replace(LAYER, attention=replace(ATTENTION, window=window)) for window in windows]


def test_layers_are_grouped_by_what_they_see() -> None:
    model = layers(8, None, 8, 32, None)
    specs = cache_specs(model, "bfloat16")
    assert [(spec.kind, spec.window, spec.layers) for spec in specs] == [
        ("paged", None, (1, 4)), ("window", 8, (0, 2)), ("window", 32, (3,)),
    ]  # fmt: skip
    assert cache_places(model, specs) == [(1, 0), (0, 0), (1, 1), (2, 0), (0, 1)]
    assert [spec.name for spec in specs] == ["full", "window_8", "window_32"]
    assert specs[0].block_shape(4) == (2, 2, 4, 2, 16)
    assert specs[0].bytes_per_block(4) == 2 * 2 * 4 * 2 * 16 * 2


def test_a_model_of_equal_layers_has_one_group() -> None:
    for window in (None, 8):
        (spec,) = cache_specs(layers(window, window), "float32")
        assert spec.layers == (0, 1) and spec.window == window


def test_heads_of_other_sizes_are_kept_apart() -> None:
    wide = replace(LAYER, attention=replace(ATTENTION, head_dim=32, value_dim=32))
    assert [spec.layers for spec in cache_specs([LAYER, wide, LAYER], "float32")] == [(0, 2), (1,)]


def test_layers_that_read_another_s_keys_keep_none() -> None:
    model = [*layers(8, None, 8), replace(LAYER, attention=replace(ATTENTION, window=8, shares=0))]
    specs = cache_specs(model, "float32")
    assert [spec.layers for spec in specs] == [(1,), (0, 2)]
    assert cache_places(model, specs) == [(1, 0), (0, 0), (1, 1), (1, 0)]


def test_keys_and_values_of_unequal_size_are_refused() -> None:
    with pytest.raises(ValueError, match="keys of 24 and values of 16 numbers"):
        CacheSpec("paged", (0,), 1, 24, 16, "float32").block_shape(16)
