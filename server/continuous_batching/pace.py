"""When to plan the next step: as late as the device allows, so that a request that arrives joins it.

Where steps overlap, the next one is launched before the tokens of the last are read. What is launched is
fixed: who arrives then waits for the step that is under way and for the one behind it. So the loop plans only
when the step under way is about to end, and takes requests until then.
"""

from __future__ import annotations

from collections.abc import Callable

from server.continuous_batching.launched import Launched
from server.scheduling.plan import Plan
from server.scheduling.preemption import RunningMean
from server.scheduling.step_time import StepTime

MARGIN_SECONDS = 5e-4
"""How long before the device is done the next step shall be launched, beside what launching takes."""

_CERTAIN = 0.95
"""Share of the expected time that is counted on."""

_SHORT_SECONDS = 2e-3
"""Of steps that take no longer, little can be gained and all be lost: these are planned at once."""


class Pace:
    """Clocks the steps of an engine.

    Args:
        times: learns how long they take.
        clock: monotonic seconds.
    """

    def __init__(self, times: StepTime, clock: Callable[[], float]) -> None:
        self._times = times
        self._clock = clock
        self._ended = 0.0  # the last step that was read
        self._leads = {False: RunningMean(), True: RunningMean()}

    def launched(self, plan: Plan, begin: float) -> None:
        """A step was planned and launched, which began at `begin`."""
        self._leads[bool(plan.chunks)].observe(self._clock() - begin)

    def read(self, step: Launched) -> None:
        """The tokens of a step have come."""
        now = self._clock()
        self._times.observe(step.plan, now - max(step.since, self._ended))
        self._ended = now

    def slack(self, step: Launched | None, *, waiting: bool) -> float:
        """Seconds until the next step should be planned; at most 0 where that is now.

        Args:
            step: under way.
            waiting: whether requests wait: steps with prompts take longer to launch.
        """
        if step is None or step.choice is None or step.choice.is_ready:
            return 0.0
        prompts = waiting or any(not chunk.samples for chunk in step.plan.chunks)
        expected, lead = self._times.expected(step.plan), self._leads[prompts].value
        if expected is None or expected < _SHORT_SECONDS or lead is None:
            return 0.0
        end = max(step.since, self._ended) + _CERTAIN * expected
        return end - lead - MARGIN_SECONDS - self._clock()
