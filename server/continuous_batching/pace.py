"""When to plan the next step: as late as possible, so that newly arrived requests can join it.

Where steps overlap, the next step is launched before the tokens of the running one are read. A launched step
cannot be changed: a request that arrives then waits for two steps. So the engine plans the next step shortly
before the running one ends, and accepts requests until then.
"""

from __future__ import annotations

from collections.abc import Callable

from server.continuous_batching.launched import Launched
from server.scheduling.plan import Plan
from server.scheduling.preemption import RunningMean
from server.scheduling.step_time import StepTime

MARGIN_SECONDS = 5e-4
"""Slack before the expected end of the running step, in addition to the launch time."""

_CERTAIN = 0.95
"""Fraction of the expected step time to rely on."""

_SHORT_SECONDS = 2e-3
"""Steps shorter than this are planned at once: waiting gains little and could leave the device idle."""


class Pace:
    """Measures the steps of an engine and tells when the next one is due.

    Args:
        times: learns the duration of steps.
        clock: monotonic seconds.

    Attributes:
        seconds: that the last step took whose tokens were read.
    """

    def __init__(self, times: StepTime, clock: Callable[[], float]) -> None:
        self._times = times
        self._clock = clock
        self.seconds = 0.0
        self._ended = 0.0  # the last step that was read
        self._leads: dict[int, RunningMean] = {}  # by `_size`, seconds from planning a step to its launch

    def launched(self, plan: Plan, begin: float) -> None:
        """A step has been launched; planning it began at `begin`."""
        size = _size(plan.num_tokens) if plan.chunks else 0
        self._leads.setdefault(size, RunningMean()).observe(self._clock() - begin)

    def read(self, step: Launched) -> None:
        """The tokens of a step have been read."""
        now = self._clock()
        self.seconds, self._ended = now - max(step.since, self._ended), now
        self._times.observe(step.plan, self.seconds)

    def slack(self, step: Launched | None, waiting: int) -> float:
        """Seconds until the next step should be planned; 0 or less: now.

        Args:
            step: the one that is running, if any.
            waiting: tokens of prompts that are queued. Steps with prompts take longer to launch, and those
                that are too long to be replayed as graphs take by far the longest.
        """
        if step is None or step.choice is None or step.choice.is_ready:
            return 0.0
        prompts = waiting + sum(chunk.sequence.prefill_end - chunk.end for chunk in step.plan.chunks)
        lead = self._leads.get(_size(len(step.plan.decodes) + prompts) if prompts else 0)
        expected = self._times.expected(step.plan)
        if expected is None or expected < _SHORT_SECONDS or lead is None or lead.value is None:
            return 0.0
        end = max(step.since, self._ended) + _CERTAIN * expected
        return end - lead.value - MARGIN_SECONDS - self._clock()


def _size(tokens: int) -> int:
    """Which steps are taken to be launched in about the same time: those within a power of two."""
    return (tokens - 1).bit_length() + 1
