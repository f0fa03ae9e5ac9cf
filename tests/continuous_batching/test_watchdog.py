"""When an engine counts as stuck, and when it is started again: pure functions of time."""

from __future__ import annotations

import pytest

from server.continuous_batching.messages import Report
from server.continuous_batching.outputs import StepOutput
from server.continuous_batching.restarts import PAUSES, Life, Restarts
from server.continuous_batching.stats import EngineStats
from server.continuous_batching.watchdog import STOPPED_SECONDS, Watchdog, default_step_timeout


def seconds_until_stuck(watchdog: Watchdog, *, limit: int = 1000, **state: bool) -> int | None:
    """After how many seconds the watchdog complains; None: not within `limit`."""
    for second in range(1, limit):
        if watchdog.tick(1.0, **{"has_work": True, "stopped": False} | state):
            return second
    return None


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_only_work_without_a_step_is_stuck(device: str) -> None:
    watchdog = Watchdog()
    assert seconds_until_stuck(watchdog) is None, "it loads"
    watchdog = Watchdog()
    watchdog.step_timeout = default_step_timeout(device)
    assert seconds_until_stuck(watchdog, has_work=False) is None
    assert seconds_until_stuck(watchdog) == watchdog.step_timeout


def test_steps_and_answers_are_progress_and_words_are_not() -> None:
    watchdog = Watchdog()
    watchdog.step_timeout = 10
    steps = Report(StepOutput(), EngineStats(steps=1)), Report(StepOutput(done=["a"]))
    for report in steps:
        assert seconds_until_stuck(watchdog, limit=9) is None
        watchdog.heard(report)
    assert seconds_until_stuck(watchdog, limit=9) is None
    watchdog.heard(Report(StepOutput(), EngineStats(steps=1)))  # alive, and turning in circles
    assert seconds_until_stuck(watchdog) == 2


def test_a_stopped_process_is_stuck_even_while_it_loads() -> None:
    assert seconds_until_stuck(Watchdog(), has_work=False, stopped=True) == STOPPED_SECONDS


def test_time_that_was_not_observed_does_not_count() -> None:
    watchdog = Watchdog()
    watchdog.step_timeout = 60
    assert watchdog.tick(3600.0, has_work=True, stopped=True) is None


def test_loading_is_given_up_and_crashes_are_not() -> None:
    restarts = Restarts()
    pauses = [restarts.pause_after(Life()) for _ in PAUSES]
    assert pauses == [*PAUSES[:-1], None]
    restarts = Restarts()
    crashes = [restarts.pause_after(Life(loaded=True)) for _ in range(50)]
    assert None not in crashes and crashes[-1] == 5.0
    assert restarts.pause_after(Life(loaded=True, served=True)) == 0.0
    assert restarts.pause_after(Life()) == PAUSES[0]
