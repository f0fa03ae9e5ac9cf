"""Loops that run in the background for as long as their service does.

A task that ends with an exception is silent until it is collected: what it did is simply no longer done.
So every loop of a service is a step that is called again and again here, whatever it raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds before the next call after a failed one; the pause doubles with each failure in a row."""

Step = Callable[[], Awaitable[None]]


async def repeat(name: str, step: Step, *, first_pause: float = FIRST_PAUSE) -> None:
    """Call `step` again and again until this task is cancelled.

    An exception of `step` does not end the loop. It is logged, with its traceback where it is another one
    than the last, and the next call follows after a pause.

    Args:
        name: what the loop does, for the log.
        step: one round, its own waiting included.
        first_pause: seconds after the first failure.
    """
    failures, logged = 0, ""
    while True:
        try:
            await step()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            failures += 1
            place = _place(error)
            if place != logged:
                logger.error("%s failed and goes on", name, exc_info=error)
            logged = place
        else:
            if failures:
                logger.info("%s works again after %d failures", name, failures)
            failures = 0
            continue
        await asyncio.sleep(min(first_pause * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE))


@contextlib.asynccontextmanager
async def in_background(name: str, step: Step) -> AsyncIterator[None]:
    """`repeat` while the block lasts."""
    task = asyncio.create_task(repeat(name, step))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _is_cancelled() -> bool:
    """Whether it is the running task that is cancelled, and not just something that it awaited."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _place(error: BaseException) -> str:
    """What tells failures apart: the exception's type and the line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__} at {where}"
