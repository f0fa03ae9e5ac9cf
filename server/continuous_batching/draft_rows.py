"""The sequences that a drafter follows: a slot and blocks of its own cache for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from server.scheduling.block_table import BlockTable
from server.scheduling.cache_manager import CacheManager
from server.scheduling.limits import Limits
from server.scheduling.params import SamplingParams
from server.scheduling.request import Phase, Request, Sequence
from server.scheduling.slots import SlotPool


@dataclass(slots=True, eq=False)
class Row:
    """A sequence as a drafter knows it.

    Attributes:
        shadow: what is computed of it here, and the blocks and the slot that hold it.
        used: number of the turn in which it was last asked for.
    """

    shadow: Sequence
    used: int = 0


RowT = TypeVar("RowT", bound=Row)


class DraftRows(Generic[RowT]):
    """Rows by request and answer. Where slots run out, the one that was not used for the longest goes.

    Args:
        limits: of the drafter's cache; without room to swap.
        make: a row of a shadow.
    """

    def __init__(self, limits: Limits, make: Callable[[Sequence], RowT]) -> None:
        self.limits = limits
        self.cache = CacheManager(limits.groups, limits.block_size, prefix_cache=False)
        self._make = make
        self._slots = SlotPool(limits.max_rows)
        self._rows: dict[str, dict[int, RowT]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return sum(len(rows) for rows in self._rows.values())

    def begin_turn(self) -> None:
        """Rows that are used from now on are safe from each other."""
        self._turn += 1

    def get(self, sequence: Sequence) -> RowT | None:
        """The row of a sequence, if there is one; it counts as used."""
        row = self._rows.get(sequence.request.id, {}).get(sequence.index)
        if row is not None:
            row.used = self._turn
        return row

    def open(
        self, sequence: Sequence, tokens: Collection[int] | np.ndarray = (), *, replace: bool = True
    ) -> RowT | None:
        """A new row; None: all slots are taken.

        Args:
            tokens: of its shadow.
            replace: another row may be given up for it, if that is not used in this turn.
        """
        if not self._slots.num_free and not (replace and self._drop_oldest()):
            return None
        request = Request(sequence.request.id, tokens, SamplingParams(max_new_tokens=1), 0.0)
        (shadow,), request.phase = request.sequences, Phase.RUNNING
        (shadow.slot,) = self._slots.take(1)
        shadow.tables = [BlockTable() for _ in self.limits.groups]
        row = self._make(shadow)
        row.used = self._turn
        self._rows.setdefault(sequence.request.id, {})[sequence.index] = row
        return row

    def extend(self, row: RowT, tokens: int) -> bool:
        """Room for `tokens` more than are computed, or for none."""
        return self.cache.extend(row.shadow, tokens) == tokens

    def drop(self, sequence: Sequence) -> None:
        """Give up the row of a sequence."""
        self._release(self._rows[sequence.request.id].pop(sequence.index))

    def forget(self, request_id: str) -> None:
        """A request is gone."""
        for row in self._rows.pop(request_id, {}).values():
            self._release(row)

    def clear(self) -> None:
        """Give up all rows."""
        for request_id in [*self._rows]:
            self.forget(request_id)

    def _release(self, row: RowT) -> None:
        self.cache.free(row.shadow)
        self._slots.release([row.shadow.slot])

    def _drop_oldest(self) -> bool:
        """Give up the row that was not used for the longest; False: all are of this turn."""
        places = [(row.used, name, index) for name, rows in self._rows.items() for index, row in rows.items()]
        used, name, index = min(places)
        if used == self._turn:
            return False
        self._release(self._rows[name].pop(index))
        return True

    def __iter__(self) -> Iterator[RowT]:
        return (row for rows in self._rows.values() for row in rows.values())

    def check(self) -> None:
        """Verify that nothing leaked; raises if something did."""
        self._slots.check(row.shadow.slot for row in self)
        self.cache.check(row.shadow.request for row in self)
