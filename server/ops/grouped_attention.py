"""Attention of a model whose layers keep their keys and values in several groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from server.ops.attention import AttentionBackend


class GroupedAttention(AttentionBackend[Any]):
    """The attention backends of all groups of layers, each with its own cache and block tables, as one.

    Args:
        backends: of the groups.
        places: (group, place in the group) of each layer of the model (`layers.cache_spec.cache_places`).
    """

    name = "grouped"

    def __init__(self, backends: Sequence[AttentionBackend[Any]], places: Sequence[tuple[int, int]]) -> None:
        self._groups = tuple(backends)
        self._places = tuple(places)
        self.chunks_like_decodes = all(backend.chunks_like_decodes for backend in backends)

    @property
    def groups(self) -> tuple[AttentionBackend[Any], ...]:
        return self._groups

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        return self._places

    def prepare(self, *batches: Any) -> None:
        """Take the batches of the next forward pass, one for each group; positions are the same in all."""
        for backend, batch in zip(self._groups, batches, strict=True):
            backend.prepare(batch)
        self.positions = self._groups[0].positions

    def forward(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        group, place = self._places[layer]
        return self._groups[group].forward(place, query, key, value, sinks, out)
