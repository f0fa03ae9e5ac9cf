"""The requests that are being answered, by the id that their sender knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count


class LiveRequests:
    """Maps the id of a request to the ids of its jobs.

    A request with several prompts has several jobs, and two requests may bear the same id (a
    gateway that tries again while the first try is still being cancelled): job ids are unique
    nevertheless.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, list[str]] = {}
        self._serial = count(1)

    @contextmanager
    def register(self, request_id: str, jobs: int) -> Iterator[list[str]]:
        """Ids for as many `jobs` of a request, known until the context is left."""
        taken = self._jobs.setdefault(request_id, [])
        plain = jobs == 1 and not taken
        ids = [request_id] if plain else [f"{request_id}#{next(self._serial)}" for _ in range(jobs)]
        taken += ids
        try:
            yield ids
        finally:
            for job_id in ids:
                taken.remove(job_id)
            if not taken:
                del self._jobs[request_id]

    def jobs(self, request_id: str) -> list[str]:
        """The jobs that live under `request_id`."""
        return list(self._jobs.get(request_id, ()))
