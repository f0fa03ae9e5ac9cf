"""Log probability of one token, as the engines report it and the routes show it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenLogprob:
    """Log probability of one generated token and of the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    """(token id, log probability), likeliest first."""
