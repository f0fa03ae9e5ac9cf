"""When an engine that ended is started again, and when that is given up."""

from __future__ import annotations

from dataclasses import dataclass

PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 60.0, 60.0)
"""Seconds before each attempt: memory that another process holds, or a model being replaced, takes
minutes to come back."""
LONGEST_PAUSE_OF_LOADED = 5.0
"""An engine that can load will do so again: only its crashes must not follow one another too fast."""


@dataclass(slots=True)
class Life:
    """How far one engine process got."""

    loaded: bool = False
    served: bool = False
    """Whether it completed a request."""


class Restarts:
    """Counts failures in a row: of loading, and of serving a request once loaded."""

    def __init__(self) -> None:
        self._failed_loads = 0
        self._crashes = 0

    def pause_after(self, life: Life) -> float | None:
        """Seconds to wait before the next start; None: it failed to load too often in a row."""
        if not life.loaded:
            self._failed_loads += 1
            return None if self._failed_loads >= len(PAUSES) else PAUSES[self._failed_loads - 1]
        self._failed_loads = 0
        self._crashes = 0 if life.served else self._crashes + 1
        if self._crashes == 0:
            return 0.0
        return min(PAUSES[min(self._crashes, len(PAUSES)) - 1], LONGEST_PAUSE_OF_LOADED)
