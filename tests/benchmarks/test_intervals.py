"""How sure figures are: against published tables, and by drawing what is known."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from benchmarks.loadgen.endpoint import Record
from benchmarks.loadgen.intervals import differs, geometric_mean, interval, ratio
from benchmarks.loadgen.lag import client_lag, timer_lag


def test_interval_of_a_textbook_sample() -> None:
    found = interval([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert found.mean == 5.0 and found.runs == 8 and found.known
    # t(0.975, 7) = 2.365, standard deviation √(32 / 7)
    assert found.half == pytest.approx(2.365 * math.sqrt(32 / 7) / math.sqrt(8))
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


def test_one_run_has_no_interval() -> None:
    found = interval([3.0])
    assert found.mean == 3.0 and not found.known
    assert found.to_dict() == {"mean": 3.0, "low": None, "high": None, "runs": 1}


@pytest.mark.parametrize("runs", [3, 5, 40])
def test_intervals_hold_the_true_mean_as_often_as_they_say(runs: int) -> None:
    random = np.random.default_rng(0)
    draws = random.normal(7.0, 2.0, (3000, runs))
    held = sum(one.low <= 7.0 <= one.high for one in map(interval, draws.tolist()))
    assert held / 3000 == pytest.approx(0.95, abs=0.015)


def test_ratios_are_paired() -> None:
    requests = [10.0, 20.0, 40.0, 80.0, 15.0]  # how heavy the requests of a seed are: both endpoints feel it
    noise = [1.00, 1.02, 0.99, 1.01, 0.98]
    fast = [3.0 * a * b for a, b in zip(requests, noise, strict=True)]
    found = ratio(fast, requests)
    assert found is not None and found.mean == pytest.approx(3.0, rel=0.01)
    assert 2.8 < found.low < 3.0 < found.high < 3.2 and differs(found)
    back = ratio(requests, fast)
    assert back is not None and back.low == pytest.approx(1 / found.high)


def test_a_difference_within_the_interval_is_none() -> None:
    assert not differs(ratio([1.0, 1.3, 0.9], [1.1, 1.0, 1.0]))
    assert not differs(ratio([2.0], [1.0])), "one run proves nothing"
    assert not differs(None)
    assert ratio([1.0, 0.0], [1.0, 1.0]) is None and ratio([], []) is None


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 10.0, 100.0]) == pytest.approx(statistics.geometric_mean([1.0, 10.0, 100.0]))


def test_lag_is_the_greater_of_late_requests_and_late_timers() -> None:
    records = [Record(i, due=float(i), sent=i + 0.01) for i in range(100)]
    assert client_lag(records, [0.001] * 50) == pytest.approx(0.01)
    assert client_lag(records, [0.02] * 50) == pytest.approx(0.02)
    assert client_lag([], []) == 0.0


async def test_a_loop_that_is_held_up_shows_in_its_timers() -> None:
    import asyncio
    import time

    async with timer_lag() as late:
        await asyncio.sleep(0.02)
        time.sleep(0.1)  # noqa: ASYNC251 - what a busy client does
        await asyncio.sleep(0.02)
    assert max(late) > 0.05
