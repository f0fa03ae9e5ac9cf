"""OpenAI accounts: what is known of each, and which one is next. State only."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import openai

from client.config import OpenAIJumperConfig
from client.load import Load

logger = logging.getLogger(__name__)

REST_AFTER_REFUSAL = 600.0
"""Seconds for which an account is left alone whose key is not accepted."""
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
    failures: int = 0
    """In a row."""
    last_error: str | None = None

    @property
    def identity(self) -> tuple[str, str | None, str | None]:
        """What makes it the same account after the configuration was read again."""
        return self.config.api_key.get_secret_value(), self.config.org_id, self.config.base_url

    def suits(self, model: str, *, unlisted: bool) -> bool:
        """Whether it takes requests for `model`; `unlisted`: also if it lists no models."""
        models = self.config.models
        return unlisted if models is None else model in models

    def rest(self, now: float, seconds: float | None, reason: str) -> None:
        """Leave the account alone for `seconds`; None: for twice as long as the last time."""
        self.failures += 1
        if seconds is None:
            seconds = min(LONGEST_REST, SHORT_REST * 2.0 ** min(self.failures - 1, 10))
        self.rests_until = now + seconds
        self.last_error = reason
        logger.warning("account %s rests for %.0f s: %s", self.name, seconds, reason)

    def succeeded(self, tokens: int) -> None:
        """It answered a request, which took `tokens`."""
        self.tokens_used += tokens
        self.failures, self.last_error = 0, None


def pick_account(accounts: Iterable[Account], tried: Collection[Account], now: float) -> Account | None:
    """The account with the fewest tokens used and under way; None if all rest or were tried."""
    awake = [a for a in accounts if a not in tried and a.rests_until <= now]
    return min(awake, key=lambda a: (a.tokens_used + a.load.tokens, a.load.picks), default=None)
