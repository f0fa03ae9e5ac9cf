"""Reads what engines answer about themselves: their models and their load."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, Field

from client.upstream.parse import count
from protocol.status import Count, ModelName


class Card(BaseModel):
    """One entry of ``/v1/models``."""

    id: ModelName
    owned_by: Annotated[str, Field(max_length=256)] = ""
    aliases: Annotated[list[ModelName], Field(max_length=64)] = []
    """llama.cpp's further names of it."""
    max_model_len: Annotated[int, Field(ge=1, le=2**53)] | None = None
    meta: dict[str, Any] | None = None
    """llama.cpp tells its context here."""

    @property
    def length(self) -> int | None:
        """Tokens of prompt and answer together that it takes."""
        return self.max_model_len or count((self.meta or {}).get("n_ctx")) or None


class Cards(BaseModel):
    """Answer of ``/v1/models``."""

    data: Annotated[list[Card], Field(min_length=1, max_length=256)]

    @property
    def owner(self) -> str:
        return self.data[0].owned_by

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use, the first model's first."""
        names = [name for card in self.data for name in (card.id, *card.aliases)]
        return tuple(dict.fromkeys(names))

    @property
    def length(self) -> int | None:
        """That of the first model; those adapted from it do not say."""
        return self.data[0].length


class EngineLoad(BaseModel):
    """What an engine says it is doing at this moment."""

    running: Count
    waiting: Count
    kv_cache_usage: float | None = None
    """Share of its cache in use, 0 to 1; null: not told."""


def samples(metrics: str, name: str) -> list[float]:
    """The samples of `name` in Prometheus' text format, one for each rank; none unless all are 0 or more."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)", metrics, re.MULTILINE)
    try:
        values = [float(value) for value in found]
    except ValueError:
        return []
    return values if all(math.isfinite(value) and value >= 0 for value in values) else []
