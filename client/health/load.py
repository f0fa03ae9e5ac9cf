"""How much work a replica has: leases of this gateway, corrected by what the server reports.

Work is counted in generated tokens (`protocol.work`), what decodes side by side in rows (a beam or
a sample each). Pure: the caller brings the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

DEFAULT_SLOTS = 32
"""Rows that a server decodes at once, where it does not say."""
REPORT_SECONDS = 5.0
"""A report fades out linearly over this time: it is a picture of the past."""


class Load:
    """Outstanding work of one replica, as far as it is known here."""

    __slots__ = (
        "_foreign",
        "_foreign_at",
        "_tokens_at",
        "_tokens_off",
        "leases",
        "picks",
        "rows",
        "slots",
        "tokens",
    )

    def __init__(self) -> None:
        self.slots = DEFAULT_SLOTS
        """Rows that the server decodes at once; more have to wait."""
        self.tokens = 0
        """Work leased by this gateway and not yet done."""
        self.rows = 0
        """Rows leased by this gateway."""
        self.leases: set[Lease] = set()
        self.picks = 0
        """Leases ever given."""
        self._tokens_off = 0
        self._tokens_at = 0.0
        self._foreign = 0
        self._foreign_at = 0.0

    def lease(self, tokens: int, rows: int, lost: Callable[[], None]) -> Lease:
        """Reserve work; use as a context manager. `lost` is called if the replica is given up."""
        return Lease(self, tokens, rows, lost)

    def expected_tokens(self, now: float) -> float:
        """Work outstanding, whoever gave it."""
        if not self._tokens_off:
            return self.tokens
        return max(0.0, self.tokens + self._tokens_off * _freshness(now - self._tokens_at))

    def expected_rows(self, now: float) -> float:
        """Rows running or waiting, whoever sent them."""
        if not self._foreign:
            return self.rows
        return self.rows + self._foreign * _freshness(now - self._foreign_at)

    def expected_wait(self, now: float, rows: float) -> float:
        """Tokens that each slot decodes before there is one for the next request.

        With all slots taken, as many of the `rows` there have to end as stand before it in line;
        each has an equal share of the outstanding work left, and `slots` of them run at a time.
        """
        in_line = rows - self.slots + 1
        return 0.0 if in_line <= 0 else in_line * self.expected_tokens(now) / (rows * self.slots)

    def report_tokens(self, pending: int, now: float) -> None:
        """The server says how much work it has: more than is leased here where others use it too,
        less where it is further than the leases tell."""
        self._tokens_off, self._tokens_at = pending - self.tokens, now

    def report_requests(self, requests: int, now: float) -> None:
        """The server says how many requests it has, running and waiting; those of others count."""
        self._foreign, self._foreign_at = max(0, requests - len(self.leases)), now


class Lease:
    """Work given to a replica, released exactly once, however the request ends."""

    __slots__ = ("_load", "_rows", "_tokens", "lost")

    def __init__(self, load: Load, tokens: int, rows: int, lost: Callable[[], None]) -> None:
        self._load = load
        self._tokens = tokens
        self._rows = rows
        self.lost = lost

    def __enter__(self) -> Lease:
        load = self._load
        load.tokens += self._tokens
        load.rows += self._rows
        load.picks += 1
        load.leases.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        load = self._load
        load.tokens -= self._tokens
        load.rows -= self._rows
        self._tokens = self._rows = 0
        load.leases.discard(self)

    def advance(self, tokens: int) -> None:
        """`tokens` of the work are done."""
        done = min(tokens, self._tokens)
        self._tokens -= done
        self._load.tokens -= done


def _freshness(age: float) -> float:
    return max(0.0, 1.0 - age / REPORT_SECONDS)
