"""Which replica has seen the beginning of a prompt, and so has it in its prefix cache.

The newest keys of beginnings (`requests.prefix`) are remembered with the replica that served them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from client.health.replica import Replica

MAX_KEYS = 20_000


class Affinity:
    """Bounded memory of who served which beginning."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._served: OrderedDict[tuple[str, int], Replica] = OrderedDict()

    def find(self, model: str, keys: Sequence[int]) -> Replica | None:
        """The replica that last served the longest known one of `keys`."""
        for key in reversed(keys):
            if replica := self._served.get((model, key)):
                return replica
        return None

    def record(self, model: str, keys: Sequence[int], replica: Replica) -> None:
        """`replica` was given a prompt with `keys`."""
        for key in keys:
            self._served[model, key] = replica
            self._served.move_to_end((model, key))
        while len(self._served) > self._max_keys:
            self._served.popitem(last=False)

    def forget(self, replica: Replica) -> None:
        """`replica` went away, and its cache with it."""
        self._served = OrderedDict((k, r) for k, r in self._served.items() if r is not replica)
