"""Packs waiting requests: which of them run together, and when.

A package holds requests whose options are alike (equal `QueuedRequest.key`) and a limited number of beams. It
is ready when its first request has waited for the packaging interval, or when it is full. Pure
state: the time is an argument, nothing here waits or runs.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class QueuedRequest(Generic[Item]):
    """A request that waits to be packed."""

    key: Hashable
    """Requests of one package have equal keys."""
    beams: int
    """Sequences that it decodes side by side."""
    prompt_tokens: int
    arrived: float
    """Monotonic seconds."""
    item: Item
    """What waits: the job, or its number."""
    priority: int = 0


class Batcher(Generic[Item]):
    """Waiting requests, grouped by key.

    Args:
        max_workload: most beams of a package; a request with more runs alone.
        interval: seconds that a package waits for company, from its first request on.
    """

    def __init__(self, max_workload: int, interval: float) -> None:
        self._max_workload = max_workload
        self._interval = interval
        self._groups: dict[Hashable, list[QueuedRequest[Item]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def add(self, queued: QueuedRequest[Item]) -> None:
        """Let `queued` wait."""
        self._groups.setdefault(queued.key, []).append(queued)

    def remove(self, queued: QueuedRequest[Item]) -> bool:
        """Take `queued` out; False if it does not wait (any more)."""
        group = self._groups.get(queued.key, [])
        if queued not in group:
            return False
        group.remove(queued)
        if not group:
            del self._groups[queued.key]
        return True

    def ready_at(self) -> float | None:
        """When the next package is ready, -inf if one is full; None where nothing waits."""
        return min(map(self._ready_at, self._groups.values()), default=None)

    def take(self, now: float) -> list[QueuedRequest[Item]]:
        """The package that runs next, its prompts in order of length; empty if none is ready.

        Of several ready packages the one with the highest priority, then the oldest request, wins.
        """
        ready = [group for group in self._groups.values() if self._ready_at(group) <= now]
        if not ready:
            return []
        first = min((min(group, key=_rank) for group in ready), key=_rank)
        package = self._pack(first, self._groups[first.key])
        for queued in package:
            self.remove(queued)
        return sorted(package, key=lambda queued: queued.prompt_tokens)

    def _ready_at(self, group: list[QueuedRequest[Item]]) -> float:
        if sum(queued.beams for queued in group) >= self._max_workload:
            return float("-inf")
        return min(queued.arrived for queued in group) + self._interval

    def _pack(
        self, first: QueuedRequest[Item], group: list[QueuedRequest[Item]]
    ) -> list[QueuedRequest[Item]]:
        """`first` and what fits beside it: by priority, then the prompts nearest in length, which
        need the least padding. The first is the oldest, so that no length waits for ever."""

        def nearness(queued: QueuedRequest[Item]) -> tuple[int, int, float]:
            return -queued.priority, abs(queued.prompt_tokens - first.prompt_tokens), queued.arrived

        package, room = [first], self._max_workload - first.beams
        for queued in sorted((queued for queued in group if queued is not first), key=nearness):
            if queued.beams <= room:
                package.append(queued)
                room -= queued.beams
        return package


def _rank(queued: QueuedRequest[Item]) -> tuple[int, float]:
    return -queued.priority, queued.arrived
