"""Where the time of a start goes, as it is told."""

from __future__ import annotations

import pytest

from server.continuous_batching.phases import StartClock, phase, phases_told_to


def test_each_phase_lasts_until_the_next_begins() -> None:
    now = 10.0
    clock = StartClock("process", lambda: now)
    now = 11.5
    clock.enter("weights")
    now = 14.0
    told = clock.told()
    assert told == {"phase": "weights", "seconds": {"process": 1.5, "weights": 2.5}, "total_seconds": 4.0}
    clock.enter("graphs")
    now = 15.0
    clock.enter(None)
    now = 99.0
    seconds = {"process": 1.5, "weights": 2.5, "graphs": 1.0}
    assert clock.told() == {"phase": None, "seconds": seconds, "total_seconds": 5.0}


def test_a_phase_that_comes_twice_is_added_up() -> None:
    now = 0.0
    clock = StartClock("a", lambda: now)
    for now, name in ((1.0, "b"), (2.0, "a"), (4.0, None)):  # noqa: B007
        clock.enter(name)
    assert clock.told()["seconds"] == {"a": 3.0, "b": 1.0}


def test_phases_are_told_within_the_block_alone() -> None:
    told: list[str] = []
    with phase("before"):
        pass
    with phases_told_to(told.append), phase("outer"), phase("inner"):
        pass
    with pytest.raises(ValueError, match="no"), phases_told_to(told.append), phase("fails"):
        raise ValueError("no")
    with phase("after"):
        pass
    assert told == ["outer", "inner", "fails"]
