"""Which replica has seen the beginning of a prompt, and so has it in its prefix cache.

A prompt is cut into chunks; each chunk's key covers everything before it. The newest keys are
remembered with the replica that served them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from client.replicas import Replica

CHUNK_CHARS = 512
"""About 128 tokens of text; as many token ids count as one chunk as well."""
CHUNK_IDS = 128
MAX_CHUNKS = 16
MAX_KEYS = 20_000


def prefix_keys(prompt: str | Sequence[int]) -> list[int]:
    """Keys of the whole chunks that `prompt` begins with, shortest prefix first."""
    size = CHUNK_CHARS if isinstance(prompt, str) else CHUNK_IDS
    if len(prompt) < size:
        return []
    keys: list[int] = []
    key = 0
    for start in range(0, min(len(prompt) // size, MAX_CHUNKS) * size, size):
        chunk = prompt[start : start + size]
        if not isinstance(chunk, str):
            if not all(type(token) is int for token in chunk):
                break  # no token ids: the server will refuse it
            chunk = tuple(chunk)
        key = hash((key, chunk))
        keys.append(key)
    return keys


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
