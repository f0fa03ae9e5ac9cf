"""Packs waiting requests: which of them run together, and when.

A package holds requests whose options are alike (equal `Ticket.key`) and at most so many beams. It
is ready when its first request has waited for the packaging interval, or when it is full. Pure
state: the time is an argument, nothing here waits or runs.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Load = TypeVar("Load")


@dataclass(slots=True, eq=False)
class Ticket(Generic[Load]):
    """A request that waits to be packed."""

    key: Hashable
    """Requests of one package have equal keys."""
    beams: int
    """Sequences that it decodes side by side."""
    prompt_tokens: int
    arrived: float
    """Monotonic seconds."""
    load: Load
    """What the ticket stands for."""
    priority: int = 0


class Batcher(Generic[Load]):
    """Waiting requests, grouped by key.

    Args:
        max_workload: most beams of a package; a request with more runs alone.
        interval: seconds that a package waits for company, from its first request on.
    """

    def __init__(self, max_workload: int, interval: float) -> None:
        self._max_workload = max_workload
        self._interval = interval
        self._groups: dict[Hashable, list[Ticket[Load]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, ticket: Ticket[Load]) -> None:
        """Let `ticket` wait."""
        self._groups.setdefault(ticket.key, []).append(ticket)

    def remove(self, ticket: Ticket[Load]) -> bool:
        """Take `ticket` out; False if it does not wait (any more)."""
        group = self._groups.get(ticket.key, [])
        if ticket not in group:
            return False
        group.remove(ticket)
        if not group:
            del self._groups[ticket.key]
        return True

    def ready_at(self) -> float | None:
        """When the next package is ready, -inf if one is full; None where nothing waits."""
        return min(map(self._ready_at, self._groups.values()), default=None)

    def take(self, now: float) -> list[Ticket[Load]]:
        """The package that runs next, its prompts in order of length; empty if none is ready.

        Of several ready packages the one with the highest priority, then the oldest request, wins.
        """
        ready = [group for group in self._groups.values() if self._ready_at(group) <= now]
        if not ready:
            return []
        first = min((min(group, key=_rank) for group in ready), key=_rank)
        package = self._pack(first, self._groups[first.key])
        for ticket in package:
            self.remove(ticket)
        return sorted(package, key=lambda ticket: ticket.prompt_tokens)

    def _ready_at(self, group: list[Ticket[Load]]) -> float:
        if sum(ticket.beams for ticket in group) >= self._max_workload:
            return float("-inf")
        return min(ticket.arrived for ticket in group) + self._interval

    def _pack(self, first: Ticket[Load], group: list[Ticket[Load]]) -> list[Ticket[Load]]:
        """`first` and what fits beside it: by priority, then the prompts nearest in length, which
        need the least padding. The first is the oldest, so that no length waits for ever."""

        def nearness(ticket: Ticket[Load]) -> tuple[int, int, float]:
            return -ticket.priority, abs(ticket.prompt_tokens - first.prompt_tokens), ticket.arrived

        package, room = [first], self._max_workload - first.beams
        for ticket in sorted((ticket for ticket in group if ticket is not first), key=nearness):
            if ticket.beams <= room:
                package.append(ticket)
                room -= ticket.beams
        return package


def _rank(ticket: Ticket[Load]) -> tuple[int, float]:
    return -ticket.priority, ticket.arrived
