"""Streams that another server began, in every state that their answers can be in."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from protocol.sse import read_cached, read_checkpoints
from tests.continuous_batching.driver import Driver
from tests.continuous_batching.engines import small_llm
from tests.continuous_batching.server_process import ServerProcess

PROMPT = [(17 * i) % 400 + 3 for i in range(19)]
OPTIONS: dict[str, Any] = {"max_new_tokens": 14, "do_sample": True, "seed": 5, "n": 3, "ignore_eos": True}
STATES = ("not begun", "begun", "one token left", "finished")


def test_every_mixture_of_answers_goes_on_as_it_would_have(tiny_model: Path) -> None:
    llm = small_llm(tiny_model)
    whole = Driver(llm)
    whole.add("whole", PROMPT, OPTIONS)
    whole.finish()
    answers = whole.answers("whole")
    assert len(answers) == 3 and len({tuple(answer) for answer in answers}) == 3
    driver, left = Driver(llm), {}
    for states in itertools.product(STATES, repeat=3):
        if set(states) == {"finished"}:
            continue
        lengths = [{"not begun": 0, "begun": 5, "one token left": 13, "finished": 14}[s] for s in states]
        name = ", ".join(states)
        emitted = [answer[:length] for answer, length in zip(answers, lengths, strict=True)]
        finished = frozenset(i for i, length in enumerate(lengths) if length == 14)
        driver.add(name, PROMPT, OPTIONS, stream=True, emitted=emitted, finished_answers=finished)
        left[name] = {i: answers[i][length:] for i, length in enumerate(lengths) if length < 14}
    driver.finish()
    assert driver.tokens == left and not driver.failures


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("resume"), tiny_model)
    yield process
    process.stop()


@pytest.fixture
async def session(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        await server.ready(session)
        yield session


ROUTE = "/v1/completions"
SAMPLED = {"prompt": [PROMPT, PROMPT[:7]], "max_tokens": 14, "n": 2, "seed": 5, "ignore_eos": True}
SEARCHED = {"prompt": PROMPT, "max_tokens": 14, "n": 2, "num_beams": 2, "ignore_eos": True, "seed": 1}


async def ask(session: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[int, bytes]:
    headers = {"x-stream-checkpoint": "1", "x-request-id": "same"}
    body = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, **body}
    async with session.post(ROUTE, json=body, headers=headers) as response:
        return response.status, await response.read()


def told(raw: bytes, answers: int) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = [{"token_ids": [], "finished": False} for _ in range(answers)]
    for index, token_ids, finished in read_checkpoints(raw):
        choices[index]["token_ids"] += token_ids
        choices[index]["finished"] |= finished
    return choices


@pytest.mark.parametrize(("body", "answers"), [(SAMPLED, 4), (SEARCHED, 2)])
async def test_a_served_stream_goes_on_from_any_mixture(
    session: aiohttp.ClientSession, body: dict[str, Any], answers: int
) -> None:
    """Of several prompts and beams, with answers that are finished, begun and not begun. What came from the
    cache is told of those that have begun, though they are computed without one when they go on."""
    await ask(session, body)
    status, raw = await ask(session, body)
    assert status == 200
    *events, usage, done = raw.split(b"\n\n")[:-1]
    size = answers // 2 if body is SAMPLED else answers
    cached = [0] * (answers // size)
    for event in events:
        for index, _, _ in read_checkpoints(event):
            cached[index // size] += read_cached(event)
    assert cached == [16, 0][: len(cached)] and b'"cached_tokens":16' in usage
    whole = told(raw, answers)
    assert all(choice["finished"] for choice in whole)
    untouched = {"token_ids": [], "finished": False}
    for states in itertools.product((0, 1, 2) if body is SAMPLED else (0, 2), repeat=answers):
        if body is SAMPLED and sum(states) % 4:  # a quarter of the mixtures is enough
            continue
        choices = [
            {0: untouched, 1: {"token_ids": choice["token_ids"][:6], "finished": False}, 2: choice}[state]
            for state, choice in zip(states, whole, strict=True)
        ]
        known = sum(
            count
            for prompt, count in enumerate(cached)
            if any(choice["token_ids"] for choice in choices[prompt * size : (prompt + 1) * size])
        )
        resume = {"created": 3, "choices": choices, "cached_tokens": known}
        status, rest = await ask(session, body | {"resume": resume, "cache_salt": f"{states}"})
        assert status == 200, rest
        assert [
            c["token_ids"] + m["token_ids"] for c, m in zip(choices, told(rest, answers), strict=True)
        ] == [choice["token_ids"] for choice in whole]
        expected = usage.partition(b'"usage"')[2].replace(b":16}", b":%d}" % known)
        assert rest.endswith(done + b"\n\n") and expected in rest


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ([{}], "there are 1 choices, the request has 2"),
        ([{}] * 3, "there are 3 choices"),
        ([{}, {"token_ids": [512]}], "token id 512"),
        ([{}, {"token_ids": [-1]}], "token_ids"),
        ([{}, {"token_ids": [5] * 15, "finished": True}], "answer 1 has more than 14 tokens"),
        ([{}, {"token_ids": [5] * 14}], "answer 1 is unfinished but has all of its 14 tokens"),
        ([{}, {"token_ids": [5, 9, 6]}], "answer 1 is unfinished but has token 9, which ends it"),
        ([{}, {"token_ids": "TOKENS OF zqz"}], "answer 1 is unfinished but has a stop string"),
        ([{"index": 1}, {"index": 0}], "unknown option"),
    ],
)
async def test_a_record_that_cannot_be_true_is_refused_by_name(
    session: aiohttp.ClientSession, tiny_model: Path, choices: list[dict[str, Any]], said: str
) -> None:
    from transformers import AutoTokenizer

    if choices[-1].get("token_ids") == "TOKENS OF zqz":
        ids = AutoTokenizer.from_pretrained(tiny_model).encode("a zqz b", add_special_tokens=False)
        choices = [{}, {"token_ids": ids}]
    body = SAMPLED | {"prompt": PROMPT, "stop": ["zqz"], "stop_token_ids": [9]}
    status, raw = await ask(session, body | {"resume": {"created": 3, "choices": choices}})
    assert status == 400 and said.encode() in raw and b"resume.choices" in raw


async def test_an_unfinished_beam_search_has_given_out_nothing(session: aiohttp.ClientSession) -> None:
    resume = {"created": 3, "choices": [{"token_ids": [5]}, {}]}
    status, raw = await ask(session, SEARCHED | {"resume": resume})
    assert status == 400 and b"beam search gives out finished answers only" in raw
