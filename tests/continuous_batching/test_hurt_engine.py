"""An engine that is killed, stopped, hung or made to raise: the server says so, and mends it.

    .venv/bin/python -m pytest -s -m slow tests/continuous_batching/test_hurt_engine.py

hurts two engines under load, 200 times in all, and prints how often, in which way, and how long it took.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest

from server.continuous_batching import messages
from tests.continuous_batching.hurt import Hurt
from utils.process import wait_until

HURTS = [
    "stop",
    "raise Add",
    "raise Report",
    "raise Loading",
    "refuse",
    "hang Add",
    "kill loading",
    "kill",
    "raise Cancel",
    "raise Ready",
    "raise Refused",
    "loop Add",
]
DIFFERENT = 7
"""So many come first; the others are parts of these, or the same by other messages: for the long run."""


@pytest.mark.parametrize(
    ("rounds", "servers"),
    [
        (DIFFERENT, 1),
        pytest.param(200, 2, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
async def test_every_hurt_is_told_and_mended(
    tiny_model: Path, tmp_path: Path, rounds: int, servers: int
) -> None:
    hurts = iter([HURTS[i % len(HURTS)] for i in range(rounds)])

    async def take_part(number: int) -> Hurt:
        directory = tmp_path / str(number)
        directory.mkdir()
        hurt = Hurt(directory, tiny_model)
        async with hurt.started(), hurt.under_load():
            for how in hurts:
                try:
                    await hurt.hurt(how)
                except BaseException as error:
                    log = hurt.server.log.read_text()[-3000:]
                    raise AssertionError(f"{how}: {error!r}\n{log}") from error
        assert hurt.engines() == []
        return hurt

    hurt = await asyncio.gather(*(take_part(i) for i in range(servers)))
    outcomes = sum((one.outcomes for one in hurt), Counter[str]())
    print("\n" + report(rounds, hurt, outcomes))
    assert set(outcomes) == {"right", "refused"}, outcomes


def report(rounds: int, hurt: Sequence[Hurt], outcomes: Counter[str]) -> str:
    """How long it took to mend each way of hurting, as a table."""
    lines = ["| hurt | times | median s | longest s |", "|---|---|---|---|"]
    for how in sorted({how for one in hurt for how in one.recoveries}):
        seconds = [second for one in hurt for second in one.recoveries[how]]
        lines.append(f"| {how} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
    answers = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return "\n".join([*lines, f"{rounds} times; requests meanwhile: {answers}; no process left behind"])


def test_every_kind_of_message_is_made_to_raise() -> None:
    kinds = {kind.__name__ for kind in get_args(messages.ToEngine) + get_args(messages.FromEngine)}
    assert {how.partition(" ")[2] for how in HURTS if how.startswith("raise ")} == kinds


def is_at_rest(pid: int) -> bool:
    """Whether a process uses no processor time for half a second."""

    def used() -> list[str]:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]

    before = used()
    time.sleep(0.5)
    return used() == before


@pytest.mark.parametrize(
    "state",  # where those end that hang or are stopped, one that works does
    ["loading", pytest.param("busy", marks=pytest.mark.slow), "hang Add", "stopped", "full queue"],
)
async def test_an_engine_ends_with_its_server(tiny_model: Path, tmp_path: Path, state: str) -> None:
    """The HTTP process is killed, and can neither close nor say anything."""
    hurt = Hurt(tmp_path, tiny_model)
    server = hurt.server.process
    try:
        if state == "loading":
            assert await asyncio.to_thread(wait_until, hurt.engines, 30)
            server.kill()
        else:
            async with hurt.started(stop=False), hurt.under_load(leaving=False):
                await hurt.until(hurt.busy)
                (pid,) = hurt.engines()
                asks: list[asyncio.Task[str]] = []
                if state == "hang Add":
                    hurt.inject(state)
                    assert await asyncio.to_thread(wait_until, lambda: not hurt.fault.exists(), 30)
                elif state == "stopped":
                    os.kill(pid, signal.SIGSTOP)
                elif state == "full queue":  # of what the engine says and the other side does not take
                    asks = [asyncio.create_task(hurt.ask(i % 6, stream=True, tokens=1900)) for i in range(40)]
                    await hurt.until(hurt.queueing)
                    server.send_signal(signal.SIGSTOP)
                    assert await asyncio.to_thread(wait_until, lambda: is_at_rest(pid), 30)
                server.kill()
                await asyncio.gather(*asks)
        await asyncio.to_thread(server.wait, 10)
        assert await asyncio.to_thread(wait_until, lambda: not hurt.engines(), 10), hurt.engines()
    finally:
        server.kill()
        for pid in hurt.engines():
            os.kill(pid, signal.SIGKILL)
