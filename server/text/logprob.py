"""Log probability of one token, as the engines report it and the routes show it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class TokenLogprob:
    """Log probability of one token, and of the likeliest tokens at its place."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)
    """(token id, log probability), likeliest first."""
    rank: int | None = None
    """Of a prompt's token: its place among all tokens, counted from 1."""
