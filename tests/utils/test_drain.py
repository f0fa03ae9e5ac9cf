"""Draining on signals; the two services that drain are tested as processes beside them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from tests.serving import eventually
from utils.drain import Drain


class Work:
    """Ends when it is told to, or is cut short."""

    def __init__(self, seconds: float = 30.0) -> None:
        self.done = asyncio.Event()
        self.cut = False
        self._seconds = seconds

    async def finish(self) -> None:
        await self.done.wait()

    async def cut_short(self) -> None:
        self.cut = True

    def drain_timeout(self) -> float:
        return self._seconds


@pytest.fixture
def exits() -> Iterator[list[int]]:
    """The signals that reach the handler which an HTTP server has set."""
    exits: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, _: exits.append(number))
    yield exits
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_the_server_goes_when_all_is_done(exits: list[int]) -> None:
    work = Work()
    drain = Drain(work)
    drain.take_signals()
    assert not drain.begun
    signal.raise_signal(signal.SIGINT)
    await eventually(lambda: drain.begun)
    assert exits == []
    work.done.set()
    await eventually(lambda: exits == [signal.SIGINT])
    assert not work.cut
    signal.raise_signal(signal.SIGTERM)  # is the server's own again
    assert exits == [signal.SIGINT, signal.SIGTERM]


async def test_a_second_signal_and_a_timeout_end_the_wait(exits: list[int]) -> None:
    work = Work()
    Drain(work).take_signals()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    await eventually(lambda: exits == [signal.SIGTERM])
    assert work.cut
    late = Work(seconds=0.0)
    await Drain(late).run()
    assert late.cut


async def test_a_fault_is_logged_and_ends_the_server(
    exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Work):
        async def finish(self) -> None:
            raise ZeroDivisionError("a fault")

    Drain(Faulty()).take_signals()
    signal.raise_signal(signal.SIGTERM)
    await eventually(lambda: exits == [signal.SIGTERM])
    assert "draining failed" in caplog.text and "ZeroDivisionError: a fault" in caplog.text
