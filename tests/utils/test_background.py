"""Loops that go on whatever happens in them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from tests.serving import eventually
from utils.background import in_background, repeat


class Rounds:
    """A step that raises what is scripted, round by round, and then works."""

    def __init__(self, *failures: Callable[[], BaseException] | None) -> None:
        self.count = 0
        self._failures = failures

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        failure = self._failures[self.count] if self.count < len(self._failures) else None
        self.count += 1
        if failure is not None:
            raise failure()


@pytest.mark.parametrize(
    "failure", [ValueError, OverflowError, MemoryError, RecursionError, KeyError, asyncio.CancelledError]
)
async def test_an_exception_does_not_end_a_loop(failure: type[BaseException]) -> None:
    """Nor does the cancellation of something that the step awaited."""
    rounds = Rounds(failure, None, failure)
    task = asyncio.create_task(repeat("a loop", rounds, first_pause=0.001))
    await eventually(lambda: rounds.count > 10)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_same_failure_is_logged_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    rounds = Rounds(*[ValueError] * 4, None, ValueError, KeyError, None)
    with caplog.at_level(logging.INFO, "utils.background"):
        task = asyncio.create_task(repeat("a loop", rounds, first_pause=0.001))
        await eventually(lambda: rounds.count > 10)
        task.cancel()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.exc_info[0] for record in errors if record.exc_info] == [ValueError, KeyError]
    assert all(record.getMessage() == "a loop failed and goes on" for record in errors)
    assert "a loop works again after 4 failures" in caplog.text


async def test_a_loop_that_fails_always_does_not_spin() -> None:
    rounds = Rounds(*[ValueError] * 10**6)
    async with in_background("a loop", rounds):
        await eventually(lambda: rounds.count == 1)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert rounds.count == 1


async def test_a_loop_ends_with_its_block() -> None:
    rounds, before = Rounds(ValueError), len(asyncio.all_tasks())
    async with in_background("a loop", rounds):
        await eventually(lambda: rounds.count == 1)
        assert len(asyncio.all_tasks()) == before + 1
    assert len(asyncio.all_tasks()) == before
