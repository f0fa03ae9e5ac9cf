"""Who has to give way where bodies want more room than there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest

from protocol.errors import ApiError
from utils.bodies import Bodies, Body, BodyLimits


class Upload:
    """A body that is being read, and the pieces that its client sends."""

    def __init__(self, body: Body) -> None:
        self._pieces: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self.reading = asyncio.create_task(body.read(self._pieces.get))

    def put(self, count: int, *, last: bool = False) -> None:
        """A piece of `count` bytes has come."""
        self._pieces.put_nowait({"type": "http.request", "body": b" " * count, "more_body": not last})

    async def send(self, count: int, *, last: bool = False) -> None:
        """The same, read before this returns."""
        self.put(count, last=last)
        for _ in range(5):
            await asyncio.sleep(0)

    async def refused(self) -> bool:
        """Whether it was told that there is no room."""
        with pytest.raises(ApiError) as error:
            await self.reading
        return error.value.status == 503 and b"bodies_full" in error.value.json()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def uploads(clock: Clock) -> AsyncIterator[tuple[Upload, Upload]]:
    """An old and a new one, of a process with room for 300,000 bytes; nothing may be held at the end."""
    limits = BodyLimits(max_buffered_body_bytes=300_000, body_timeout_seconds=100)
    bodies = Bodies(lambda: limits, clock)
    with bodies.open([]) as first, bodies.open([]) as second:
        yield Upload(first), Upload(second)
    assert bodies.held == 0


@pytest.mark.parametrize("asks", ["old", "new"])
async def test_the_oldest_gives_way_if_it_takes_long(
    uploads: tuple[Upload, Upload], clock: Clock, asks: str
) -> None:
    """Whichever upload asks for more room than there is, the oldest itself included."""
    old, new = uploads
    await old.send(100_000)
    clock.now = 101
    await new.send(100_000)
    await (old if asks == "old" else new).send(150_000)
    assert await old.refused()
    if asks == "new":
        assert await new.refused()  # there was no room when it asked
    else:
        await new.send(100, last=True)
        assert len(await new.reading) == 100_100


async def test_what_comes_meanwhile_does_not_save_it(uploads: tuple[Upload, Upload], clock: Clock) -> None:
    old, new = uploads
    await old.send(200_000)
    clock.now = 101
    new.put(200_000)
    old.put(1)
    assert await new.refused()
    assert await old.refused()
