"""The places of the batch: each running sequence holds one, from which everything kept by slot is indexed."""

from __future__ import annotations

from collections.abc import Iterable


class SlotPool:
    """Slots ``0`` to ``num_slots - 1``, each free or held by one sequence.

    Args:
        num_slots: most sequences that run at once.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` free slots; the caller has checked that there are as many."""
        return [self._free.pop() for _ in range(count)]

    def release(self, slots: Iterable[int]) -> None:
        """Give slots back."""
        self._free.extend(slots)

    def check(self, held: Iterable[int]) -> None:
        """Verify that every slot is free or held, and once only.

        Raises:
            RuntimeError: one leaked or is owned twice.
        """
        slots = sorted([*self._free, *held])
        if slots != list(range(self.num_slots)):
            raise RuntimeError(f"slots leaked or owned twice: {slots}")
