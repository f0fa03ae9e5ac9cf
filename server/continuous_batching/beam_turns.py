"""Whether all beams take part in every step, or two halves of them by turns.

The host chooses what becomes of beams: their next step can be planned only once it has read the tokens of the
last one, and the device waits meanwhile. In two halves, by turns, the device computes one while the host
chooses for the other. That pays where a step of half the beams takes about half the time.
"""

from __future__ import annotations

from server.scheduling.preemption import RunningMean
from server.scheduling.scheduler import Scheduler
from server.worker.decode_graphs import ROWS_APART


class BeamTurns:
    """Decides from the time that steps take, and the time for which the device waits between them.

    Args:
        scheduler: whose requests these are.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waits = RunningMean()

    def observe(self, seconds: float) -> None:
        """With all beams in one step, the device waited `seconds` for the host to choose and to plan."""
        self._waits.observe(seconds)

    def most(self) -> int | None:
        """How many beams take part in the next step, the others in the one after it; None: all of them, once
        the tokens of the last step are read."""
        beams = others = 0
        for request in self._scheduler.queues.running:
            if request.params.uses_beams:
                beams += request.params.num_rows
            else:
                others += len(request.sequences)
        cache = self._scheduler.cache
        # a request whose tokens are under way cannot leave: there is to be a block more for each sequence
        if not beams or cache.slides or not cache.has_blocks(beams + others):
            return None
        # a captured size: steps of 208 and 192 beams need no padding, two of 200 need 8 rows each
        half = -(-beams // (2 * ROWS_APART)) * ROWS_APART
        return half if half < beams and self._pays(half + others, beams + others) else None

    def _pays(self, half: int, all_rows: int) -> bool:
        """Whether two steps of `half` the rows take less than one of `all_rows` and the wait behind it."""
        step_time, waits = self._scheduler.step_time, self._waits.value
        whole = step_time.of_decodes(all_rows)
        if whole is None or waits is None:
            return False
        part = step_time.of_decodes(half)
        return part is None or 2 * part < whole + waits
