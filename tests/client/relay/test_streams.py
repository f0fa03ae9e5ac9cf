"""How far a stream has come, the clocks of requests, and the history of both."""

from __future__ import annotations

import asyncio
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.metrics.history import SLOT_SECONDS, SLOTS, History
from client.relay.resume import Journal, resumed_body
from client.requests.deadline import TICK, ClientGone, ClientStalled, Deadline
from protocol.errors import unavailable
from protocol.sse import DONE, cached, checkpoint, event


def a_stream(tokens: list[int], choices: int = 1) -> list[bytes]:
    """Events with checkpoints, as a server sends them."""
    events = [
        event(
            json.dumps({"created": 1234, "choices": [{"index": i % choices, "text": f" {token}"}]}).encode(),
            comments=checkpoint(i % choices, [token, token + 1], i == len(tokens) - 1),
        )
        for i, token in enumerate(tokens)
    ]
    return [*events, event(b'{"usage": 1}') + DONE]


def without_checkpoints(data: bytes) -> bytes:
    return b"".join(line for line in data.splitlines(keepends=True) if not line.startswith(b": tokens"))


@given(
    st.lists(st.integers(0, 50_000), min_size=1, max_size=12),
    st.integers(1, 3),
    st.integers(0, 10_000),
    st.integers(0, 2**32),
)
def test_a_journal_knows_exactly_what_the_client_has(
    tokens: list[int], choices: int, cut: int, seed: int
) -> None:
    """However a stream is cut into packets and wherever it ends."""
    whole = b"".join(a_stream(tokens, choices))
    cut = min(cut, len(whole))
    dice = random.Random(seed)
    journal, sent, at = Journal(), b"", 0
    while at < cut:
        size = dice.randint(1, 80)
        events, _ = journal.feed(whole[at : min(at + size, cut)])
        sent += events
        at += size
    assert without_checkpoints(whole).startswith(sent)
    assert sent == b"" or sent.endswith(b"\n\n")
    assert journal.done == (cut == len(whole))
    count = sent.count(b'"text"')
    resume = journal.resume(choices, now=99)
    assert resume.created == (1234 if count else 99)
    for index, choice in enumerate(resume.choices):
        mine = [t for i, t in enumerate(tokens[:count]) if i % choices == index]
        assert choice.token_ids == [id for token in mine for id in (token, token + 1)]
        assert choice.finished == (count == len(tokens) > 0 and (count - 1) % choices == index)


def test_a_journal_drops_what_was_cut_and_keeps_errors_back() -> None:
    journal = Journal()
    first, *_ = a_stream([1, 2])
    assert journal.feed(first + b": tokens 0 5")[0] == without_checkpoints(first)
    journal.new_connection()
    error = event(unavailable("lost").json(), name="error")
    assert journal.feed(first + b": tokens 0 9\n" + error) == (without_checkpoints(first), 2)
    assert journal.error == b": tokens 0 9\n" + error
    assert journal.resume(1, 0).choices[0].token_ids == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (event(b'{"choices": [{"index": 0, "text": "a"}]}'), "without a checkpoint"),
        (event(b"{}", comments=b": tokens 0 5\n: tokens 2 6\n"), "answer 2 among 2"),
        (event(b"{}", comments=b": tokens 0 5,,6\n"), "no checkpoint"),
        (event(b"{}", comments=b": cached -1\n: tokens 0 5\n"), "no count of cached tokens"),
        (event(b"{}", comments=b": tokens 0 5 .\n: tokens 0 6\n"), "goes on after its end"),
    ],
)
def test_a_stream_is_not_continued_from_what_cannot_be_true(sent: bytes, reason: str) -> None:
    """Guessed, the client would get text twice, or another answer's."""
    journal = Journal()
    journal.feed(sent)
    assert not journal.resumable(2)
    with pytest.raises(ValueError, match=reason):
        journal.resume(2, 0)


def test_the_resumed_request_is_the_request_and_where_to_go_on() -> None:
    journal = Journal()
    journal.feed(a_stream([7])[0])
    body = json.loads(resumed_body({"model": "m", "odd": [1]}, journal.resume(1, 0), checks_weights=True))
    assert body == {
        "model": "m",
        "odd": [1],
        "resume": {
            "created": 1234,
            "choices": [{"token_ids": [7, 8], "finished": True}],
            "cached_tokens": 0,
        },
    }


def test_cached_tokens_of_all_prompts_are_added_up() -> None:
    """Clients see nothing of the comments; a server that does not know of the field is not sent it."""
    journal = Journal()
    first, second, *_ = a_stream([7, 9], choices=2)
    assert journal.feed(cached(16) + first)[0] == without_checkpoints(first)
    journal.feed(cached(32) + second[:-1])
    journal.new_connection()  # the second event never came
    assert journal.resume(2, 0).cached_tokens == 16
    assert journal.feed(cached(48) + second)[0] == without_checkpoints(second)
    resume = journal.resume(2, 0)
    assert resume.cached_tokens == 64
    assert b"cached_tokens" not in resumed_body({}, resume, checks_weights=False)


async def test_a_wait_that_lasts_too_long_is_given_up() -> None:
    deadline = Deadline("id", 0.0)
    deadline.phase(10.0, 5.0, ClientStalled)
    deadline.check(15.0)
    asyncio.get_running_loop().call_soon(deadline.check, 15.1)
    with pytest.raises(ClientStalled), deadline:
        await asyncio.sleep(10)
    deadline.check(100.0)
    await asyncio.sleep(0)  # outside the block nothing is interrupted
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_cancellation_from_outside_wins() -> None:
    async def work() -> None:
        deadline = Deadline("id", 0.0)
        asyncio.get_running_loop().call_soon(deadline.give_up, ClientStalled())
        with deadline:
            await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_client_that_left_is_noticed_at_the_next_wait_at_the_latest() -> None:
    gone = asyncio.Event()

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    deadline = Deadline("id", 0.0)
    deadline.receive = receive
    deadline.check(TICK)
    gone.set()
    await asyncio.sleep(0.01)
    with pytest.raises(ClientGone), deadline:
        pass
    deadline.close()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_history_slots() -> None:
    clock = Clock()
    history = History(clock)
    history.finished(0.1, failed=False)
    history.finished(0.3, failed=False)
    history.finished(9.0, failed=True)
    history.finished(0.0, failed=True, by_client=True)
    history.slot().tokens += 50
    assert history.points() == []  # not over yet
    clock.now = SLOT_SECONDS
    (point,) = history.points()
    assert point.requests_per_second == 4 / SLOT_SECONDS and point.tokens_per_second == 50 / SLOT_SECONDS
    assert point.failed_per_second == point.client_errors_per_second == 1 / SLOT_SECONDS
    assert (point.answers, point.streams) == (2, 0)
    assert point.latency_p50 == pytest.approx(0.1, rel=0.25)
    assert point.latency_p95 == pytest.approx(0.3, rel=0.25)
    assert point.first_event_p50 is None
    clock.now = 1e6
    assert len(history.points()) == SLOTS - 1
    assert all(point.requests_per_second == 0 for point in history.points())
