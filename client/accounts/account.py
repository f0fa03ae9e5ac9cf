"""OpenAI accounts: what is known of each, and which one is next. State only."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import openai

from client.config import OpenAIJumperConfig
from client.health.load import Load

logger = logging.getLogger(__name__)

REST_AFTER_REFUSAL = 600.0
"""Seconds for which an account is left alone whose key is not accepted, or for one model that it refuses."""
MAX_REFUSED_MODELS = 256
"""Models whose refusal is kept for each account: clients name them."""
SHORT_REST = 1.0
"""Seconds after a failure or a rate limit without a hint; doubled with each in a row."""
LONGEST_REST = 60.0


@dataclass(eq=False, slots=True)
class Account:
    """One account."""

    name: str
    config: OpenAIJumperConfig
    client: openai.AsyncOpenAI
    load: Load = field(default_factory=Load)
    tokens_used: int = 0
    rests_until: float = 0.0
    rested_at: float = -math.inf
    """When the last rest began: what was sent before says nothing of the time after it."""
    failures: int = 0
    """In a row."""
    last_error: str | None = None
    _refused: dict[str, float] = field(default_factory=dict)
    """Models that it refuses, and until when it is not asked for them."""

    @property
    def identity(self) -> tuple[str, str | None, str | None]:
        """What makes it the same account after the configuration was read again."""
        return self.config.api_key.get_secret_value(), self.config.org_id, self.config.base_url

    def suits(self, model: str, *, unlisted: bool) -> bool:
        """Whether it takes requests for `model`; `unlisted`: also if it lists no models."""
        models = self.config.models
        return unlisted if models is None else model in models

    def awake_at(self, model: str | None = None) -> float:
        """When it takes requests (for `model`) again; in the past if it does now."""
        return max(self.rests_until, self._refused.get(model, 0.0) if model is not None else 0.0)

    def rest(self, now: float, seconds: float | None, reason: str, *, sent_at: float) -> None:
        """Do not use the account for `seconds`; None: for twice as long as the last time.

        Args:
            now: monotonic seconds.
            seconds: how long.
            reason: why, for people.
            sent_at: when the request was sent that it failed. Requests that were under way together count
                as one failure.
        """
        if sent_at < self.rested_at:
            self.rests_until = max(self.rests_until, now + (seconds or 0.0))
            return
        self.failures += 1
        if seconds is None:
            seconds = min(LONGEST_REST, SHORT_REST * 2.0 ** min(self.failures - 1, 10))
        self.rests_until = now + seconds
        self.rested_at = now
        self.last_error = reason
        logger.warning("account %s rests for %.0f s: %s", self.name, seconds, reason)

    def refuse(self, now: float, model: str, reason: str) -> None:
        """Do not ask it for `model` for a while: another account answered what it refused."""
        self._refused.pop(model, None)
        while len(self._refused) >= MAX_REFUSED_MODELS:
            del self._refused[next(iter(self._refused))]
        self._refused[model] = now + REST_AFTER_REFUSAL
        logger.warning("account %s is not asked for %r for a while: %s", self.name, model, reason)

    def succeeded(self, tokens: int, *, sent_at: float) -> None:
        """It answered a request sent at `sent_at` with `tokens` tokens."""
        self.tokens_used += tokens
        if sent_at >= self.rested_at:
            self.failures, self.last_error = 0, None

    def reconfigure(self, name: str, config: OpenAIJumperConfig, client: openai.AsyncOpenAI) -> None:
        """Go on under another configuration of the same account: counts stay, rests end."""
        self.name, self.config, self.client = name, config, client
        self.rests_until, self.failures, self.last_error = 0.0, 0, None
        self._refused.clear()


def pick_account(
    accounts: Iterable[Account], tried: Collection[Account], now: float, model: str | None = None
) -> Account | None:
    """The account with the fewest tokens used and under way; None if all rest (or refuse `model`) or were
    tried."""
    awake = [a for a in accounts if a not in tried and a.awake_at(model) <= now]
    return min(awake, key=lambda a: (a.tokens_used + a.load.tokens, a.load.picks), default=None)
