"""What the layers of a model keep of the tokens that they have seen: a `CacheSpec` for each group of layers.

Layers of one group keep and forget the same tokens, so that a sequence holds blocks for all of them together.
Plain data, which the scheduler, the worker's memory and the backends read alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.layers.spec import AttentionSpec, LayerSpec

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""By torch's name of the type."""


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Keys and values of a group of layers.

    Attributes:
        kind: ``paged``: of every token; ``window``: of those that later tokens still see.
        layers: which layers of the model, in order; their place in here is their place in a block.
        num_kv_heads: of each layer.
        head_dim: numbers of a key.
        value_dim: numbers of a value.
        dtype: torch's name of the type.
        window: tokens that a token sees at most, itself included, if of kind ``window``.
    """

    kind: Literal["paged", "window"]
    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    window: int | None = None

    @property
    def name(self) -> str:
        """For operators: metrics and ``/status``."""
        return "full" if self.window is None else f"window_{self.window}"

    def block_shape(self, block_size: int) -> tuple[int, ...]:
        """``(layers, 2, block_size, num_kv_heads, head_dim)``: keys, then values.

        Raises:
            ValueError: keys and values are not of one size.
        """
        if self.value_dim != self.head_dim:
            raise ValueError(
                f"a cache of keys of {self.head_dim} and values of {self.value_dim} numbers is not supported"
            )
        return len(self.layers), 2, block_size, self.num_kv_heads, self.head_dim

    def bytes_per_block(self, block_size: int) -> int:
        numbers = self.num_kv_heads * (self.head_dim + self.value_dim)
        return len(self.layers) * block_size * numbers * _BYTES[self.dtype]


def cache_specs(layers: Sequence[LayerSpec], dtype: str) -> tuple[CacheSpec, ...]:
    """The groups of a model's layers: those that see everything first, then by window, the shortest first.

    Layers that read the keys and values of another (`AttentionSpec.shares`) keep none.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for index, layer in enumerate(layers):
        if layer.attention.shares is None:
            members.setdefault(_kept(layer.attention), []).append(index)
    return tuple(
        CacheSpec(
            "window" if window else "paged", tuple(indices), kv_heads, head, value, dtype, window or None
        )
        for (window, kv_heads, head, value), indices in sorted(members.items())
    )


def _kept(attention: AttentionSpec) -> tuple[int, ...]:
    """What layers of one group have in common."""
    sizes = attention.num_kv_heads, attention.head_dim, attention.value_dim
    return attention.window or 0, *sizes


def cache_places(layers: Sequence[LayerSpec], specs: Sequence[CacheSpec]) -> list[tuple[int, int]]:
    """(group, place in the group) of the keys and values that each layer reads."""
    places = {
        layer: (group, place) for group, spec in enumerate(specs) for place, layer in enumerate(spec.layers)
    }
    return [
        places[index if (shared := layer.attention.shares) is None else shared]
        for index, layer in enumerate(layers)
    ]
