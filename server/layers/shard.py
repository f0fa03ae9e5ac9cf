"""Which part of a model a process holds, where several share one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of rank `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1

    def rows(self, total: int) -> int:
        """Rows that each rank holds of `total` divided among all; the last ones may hold padding."""
        return -(-total // self.ranks)


WHOLE = Shard()
"""A model in one piece."""
