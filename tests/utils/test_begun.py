"""What has run as far as it can without waiting."""

from __future__ import annotations

import asyncio

import pytest

from utils.begun import Begun


async def after(*futures: asyncio.Future[int]) -> int:
    """The sum of what comes; a cancellation counts as 100 and does not end the wait for the rest."""
    total = 0
    for future in futures:
        try:
            total += await future
        except asyncio.CancelledError:
            total += 100
    return total


async def test_what_waits_for_nothing_has_ended() -> None:
    begun = Begun(after())
    assert begun.ended and begun.result == 0


async def test_what_waits_goes_on_where_it_was() -> None:
    first, second = (asyncio.get_running_loop().create_future() for _ in range(2))
    begun = Begun(after(first, second))
    assert not begun.ended
    asyncio.get_running_loop().call_later(0.01, first.set_result, 1)
    asyncio.get_running_loop().call_later(0.02, second.set_result, 2)
    assert await begun == 3


async def test_a_time_limit_ends_it() -> None:
    never: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait() -> int:
        return await never

    begun = Begun(wait())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await begun
    assert never.cancelled()


@pytest.mark.parametrize("more", [0, 1])
async def test_what_catches_a_cancellation_has_its_way(more: int) -> None:
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    begun = Begun(after(first, *[second] * more))
    task = asyncio.ensure_future(begun)
    loop.call_later(0.01, task.cancel)
    loop.call_later(0.02, second.set_result, 2)
    assert await task == 100 + 2 * more


async def test_what_fails_at_once_fails_here() -> None:
    async def fail() -> None:
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        Begun(fail())
