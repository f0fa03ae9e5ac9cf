"""The requests that are being answered, by the id that their sender knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count


class LiveRequests:
    """Maps the id of a request to the ids of its jobs.

    A request with several prompts has several jobs, and requests may bear the same id: a gateway tries
    again while the engine still works on the first try, which was cut a moment ago. No job's id ever
    comes twice, so that nothing of the one is taken for the other.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, list[str]] = {}
        self._serial = count(1)

    @contextmanager
    def register(self, request_id: str, jobs: int) -> Iterator[list[str]]:
        """Ids for as many `jobs` of a request, known until the context is left."""
        ids = [f"{request_id}#{next(self._serial)}" for _ in range(jobs)]
        taken = self._jobs.setdefault(request_id, [])
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
