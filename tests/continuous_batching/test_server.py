"""The server as its clients see it: streams, limits, and an engine that is killed."""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol.sse import read_checkpoints
from tests.continuous_batching.reference import Reference
from tests.continuous_batching.server_calls import is_idle, joined, post, stream, until
from tests.continuous_batching.server_process import ServerProcess
from tests.dashboard import PANELS, empty_panels, samples

LIMITS: dict[str, dict[str, Any]] = {
    "batcher_config": {"batch_max_beams": 8, "max_waiting": 30, "queue_timeout_seconds": 2.0},
    "cache_config": {"num_blocks": 300, "num_blocks_cpu": 60, "block_size": 8},
}

CLEAN_EXITS = (0, -signal.SIGTERM)
"""Uvicorn ends itself by the signal that it was sent, once everything is closed."""


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("server"), tiny_model, **LIMITS)
    yield process
    assert process.stop() in CLEAN_EXITS, process.log.read_text()


@pytest.fixture
async def session(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        await server.ready(session)
        yield session


async def test_streamed_pieces_join_to_the_whole_answer(
    session: aiohttp.ClientSession, server: ServerProcess
) -> None:
    config = {"max_new_tokens": 60, "do_sample": True, "seed": 3, "n": 2, "ignore_eos": True}
    status, whole = await post(session, server, "Once upon a time", **config)
    assert status == 200
    events, raw = await stream(session, server, {"prompt": "Once upon a time", "generation_config": config})
    for index in (0, 1):
        assert joined(events, index) == whole["choices"][index]["text"]
        tokens = [t for i, ids, _ in read_checkpoints(raw) if i == index for t in ids]
        assert tokens == whole["choices"][index]["token_ids"]
    assert events[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == 120


async def test_no_piece_of_a_stream_shows_half_a_character(
    session: aiohttp.ClientSession, server: ServerProcess, reference: Reference
) -> None:
    """Answers are steered by bias to spell Chinese and emoji, several tokens a character."""
    text = "你好，世界！😀🚀"
    ids = reference.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text)
    for token_id in ids[:4]:
        prompt = [5, 6, 7]
        bias = {str(i): 100.0 for i in {token_id, *ids}}
        config = {"max_new_tokens": 24, "do_sample": True, "seed": token_id, "logit_bias": bias}
        events, _ = await stream(session, server, {"prompt": prompt, "generation_config": config})
        _, whole = await post(session, server, prompt, **config)
        produced = b"".join(
            reference.tokenizer.decode([t]).encode() for t in whole["choices"][0]["token_ids"]
        )
        assert produced and joined(events) == whole["choices"][0]["text"]
        pieces = [c["text"] for event in events for c in event["choices"]]
        expected = reference.tokenizer.decode(whole["choices"][0]["token_ids"])
        assert "".join(pieces) == expected
        # a replacement character appears only where the tokens themselves are not UTF-8
        assert sum(p.count("�") for p in pieces) == expected.count("�")


async def test_a_stop_string_is_never_shown(session: aiohttp.ClientSession, server: ServerProcess) -> None:
    config = {"max_new_tokens": 60, "ignore_eos": True}
    _, free = await post(session, server, "The quick brown fox", **config)
    text = free["choices"][0]["text"]
    stop = re.findall("[a-z]{3}", text)[4]  # cut without regard to tokens
    events, _ = await stream(
        session, server, {"prompt": "The quick brown fox", "generation_config": config | {"stop": stop}}
    )
    assert joined(events) == text[: text.index(stop)]
    reasons = [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]]
    assert reasons == ["stop"]


@pytest.mark.parametrize("cut", [0, 1, 9, 30])
async def test_a_cut_stream_goes_on_without_a_seam(
    session: aiohttp.ClientSession, server: ServerProcess, cut: int
) -> None:
    config = {"max_new_tokens": 40, "do_sample": True, "seed": 9, "ignore_eos": True, "stop": ["zqz"]}
    body = {"prompt": "In the morning", "generation_config": config}
    whole, raw = await stream(session, server, body)
    blocks = raw.split(b"\n\n")
    head = b"\n\n".join(blocks[:cut]) + b"\n\n"
    emitted = [t for _, ids, _ in read_checkpoints(head) for t in ids]
    resume = {"created": 0, "choices": [{"token_ids": emitted, "finished": False}]}
    rest, rest_raw = await stream(session, server, {**body, "resume": resume})
    assert joined(whole[:cut]) + joined(rest) == joined(whole)
    assert rest[-1]["usage"] == whole[-1]["usage"]
    if cut:
        assert rest_raw == b"\n\n".join(blocks[cut:]), "the bytes are the same"


async def test_a_reader_that_leaves_frees_everything(
    session: aiohttp.ClientSession, server: ServerProcess
) -> None:
    body = {"model": "tiny", "prompt": "x", "stream": True, "generation_config": {"max_new_tokens": 1500}}
    body["generation_config"] |= {"ignore_eos": True}  # type: ignore[operator]
    async with session.post(f"{server.url}/completion/v2", json=body) as response:
        await response.content.readany()
        await until(session, server, lambda status: status["load"]["running"] == 1)
        response.close()
    status = await until(session, server, is_idle)
    assert status["details"]["engine"]["generated_tokens"] > 0


async def test_a_full_queue_and_a_late_request(session: aiohttp.ClientSession, server: ServerProcess) -> None:
    calls = [post(session, server, [7, 8, 9 + i], max_new_tokens=1800, ignore_eos=True) for i in range(60)]
    answers = await asyncio.gather(*calls)
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 408, 429}
    assert statuses.count(200) >= 8 and 429 in statuses and 408 in statuses
    codes = {body["error"]["code"] for status, body in answers if status != 200}
    assert codes == {"queue_full", "queue_timeout"}
    await until(session, server, is_idle)


@pytest.mark.parametrize(
    ("prompt", "config", "param", "numbers"),
    [
        ([5] * 3000, {}, "prompt", ["3000", "2048"]),
        ([5] * 100, {"max_new_tokens": 2000}, "generation_config.max_new_tokens", ["100", "2000", "2048"]),
        ([5] * 100, {"max_new_tokens": 1000, "num_beams": 8}, "generation_config.max_new_tokens", ["300"]),
        ([5], {"num_beams": 9}, "generation_config.num_beams", ["9", "8"]),
        ([5], {"n": 9, "do_sample": True}, "generation_config.n", ["9", "8"]),
        ([5], {"stop_token_ids": [512]}, "generation_config.stop_token_ids", ["512"]),
    ],
)
async def test_what_can_never_be_done_is_refused_by_the_numbers(
    session: aiohttp.ClientSession,
    server: ServerProcess,
    prompt: list[int],
    config: Any,
    param: str,
    numbers: list[str],
) -> None:
    status, body = await post(session, server, prompt, **config)
    assert status == 422 and body["error"]["param"] == param
    assert all(number in body["error"]["message"] for number in numbers), body


async def test_no_number_ends_the_engine(session: aiohttp.ClientSession, server: ServerProcess) -> None:
    before = (await server.status(session))["details"]
    beams = {"num_beams": 2, "max_new_tokens": 30, "ignore_eos": True}
    for config, expected in (
        (beams | {"length_penalty": 250}, 422),
        (beams | {"length_penalty": -10}, 200),
        ({"top_k": 2**63 - 1}, 422),
        ({"top_k": 10**30}, 422),
        ({"do_sample": True, "temperature": 1e-50, "logprobs": 3}, 200),
        ({"do_sample": True, "repetition_penalty": 1e-45}, 422),
    ):
        status, body = await post(session, server, [5, 6, 7], **config)
        assert status == expected, body
        if status == 200:
            assert body["choices"][0]["finish_reason"] in ("stop", "length")
            assert all(token < 512 for token in body["choices"][0]["token_ids"])
    after = (await until(session, server, is_idle))["details"]
    assert after["engine_pid"] == before["engine_pid"]


OTHER_HISTOGRAMS = (
    *("request_params_max_tokens", "request_params_n", "request_inference_time_seconds"),
    "request_time_per_output_token_seconds",
)
"""Of other dashboards than vLLM's own."""


@pytest.mark.parametrize("streamed", [False, True])
async def test_every_panel_of_the_dashboard_has_data(
    session: aiohttp.ClientSession, server: ServerProcess, streamed: bool
) -> None:
    """After ten requests of one kind."""

    async def scrape() -> str:
        async with session.get(f"{server.url}/metrics") as response:
            return await response.text()

    await until(session, server, is_idle)
    before = await scrape()
    for number in range(10):
        prompt, config = f"count me {number}", {"max_new_tokens": 4, "ignore_eos": True}
        if streamed:
            await stream(session, server, {"prompt": prompt, "generation_config": config})
        else:
            assert (await post(session, server, prompt, **config))[0] == 200
    after = await scrape()
    assert empty_panels(before, after, "tiny") == []
    assert empty_panels(before, after, "other") == list(PANELS)
    counts = {name: samples(after, f"{name}_count", "tiny")["tiny"] for name in OTHER_HISTOGRAMS}
    assert min(counts.values()) >= 10
    for name in ("prefix_cache_queries_total", "num_preemptions_total"):
        assert "tiny" in samples(after, name, "tiny")


async def test_drafts_are_counted_and_change_nothing(
    session: aiohttp.ClientSession, server: ServerProcess
) -> None:
    """The bias makes an answer that repeats itself, so that the first drafts are right."""
    config = {"max_new_tokens": 60, "ignore_eos": True, "logit_bias": {"40": 50.0}}
    _, plain = await post(session, server, "say it again", **config)
    before = (await server.status(session))["details"]["engine"]
    lookup = {"prompt_lookup_num_tokens": 8, "max_matching_ngram_size": 2}
    events, _ = await stream(
        session, server, {"prompt": "say it again", "generation_config": config | lookup}
    )
    assert joined(events) == plain["choices"][0]["text"]
    status = await until(session, server, is_idle)
    after = status["details"]["engine"]
    assert status["capabilities"]["speculation"]["name"] == "prompt lookup"
    assert before["drafted_tokens"] == 0 < after["accepted_tokens"] <= after["drafted_tokens"]
    async with session.get(f"{server.url}/metrics") as response:
        families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    for name, field in (("draft", "drafted"), ("accepted", "accepted")):
        sample = families[f"vllm:spec_decode_num_{name}_tokens"].samples[0]
        assert sample.value == after[f"{field}_tokens"]


async def test_drafts_through_the_openai_api(session: aiohttp.ClientSession, server: ServerProcess) -> None:
    body = {"model": "tiny", "prompt": "again", "temperature": 0, "prompt_lookup_num_tokens": 4}
    async with session.post(f"{server.url}/v1/completions", json=body) as response:
        assert response.status == 200
    async with session.post(f"{server.url}/v1/completions", json=body | {"num_beams": 2}) as response:
        assert response.status == 400
        assert "prompt_lookup_num_tokens" in (await response.json())["error"]["message"]


async def test_a_killed_engine_under_load(session: aiohttp.ClientSession, server: ServerProcess) -> None:
    """Whatever was in flight is answered, exactly or with an error that may be tried again."""
    rng = random.Random(4)
    prompts = [rng.choices(range(3, 500), k=rng.randint(1, 40)) for _ in range(20)]
    config = {"max_new_tokens": 300, "ignore_eos": True}
    undisturbed = [(await post(session, server, p, **config))[1]["choices"] for p in prompts[:6]]
    long = config | {"max_new_tokens": 1000}
    calls = [asyncio.create_task(post(session, server, p, **long)) for p in prompts]
    before = (await until(session, server, lambda status: status["load"]["running"] > 0))["details"]
    await server.kill_engine(session)
    answers = await asyncio.gather(*calls)
    assert {status for status, _ in answers} <= {200, 503}
    assert any(status == 503 for status, _ in answers), "the engine was killed too late to matter"
    codes = {body["error"]["code"] for status, body in answers if status != 200}
    assert codes <= {"engine_lost", "loading"}  # it was at work on it, or had not begun
    await server.ready(session)
    assert (await server.status(session))["details"]["engine_restarts"] == before["engine_restarts"] + 1
    again = [(await post(session, server, p, **config))[1]["choices"] for p in prompts[:6]]
    assert again == undisturbed


async def test_sigterm_drains(tiny_model: Path, tmp_path: Path) -> None:
    """What was accepted is answered, what comes later is sent away, and the exit is clean."""
    server = ServerProcess(tmp_path, tiny_model, **LIMITS)
    async with aiohttp.ClientSession() as session:
        await server.ready(session)
        config = {"max_new_tokens": 1200, "ignore_eos": True}
        running = asyncio.create_task(post(session, server, [5, 6, 7], **config))
        await until(session, server, lambda status: status["load"]["running"] == 1)
        server.process.terminate()
        await until(session, server, lambda status: status["state"] == "draining")
        async with session.post(
            f"{server.url}/completion/v2", json={"model": "tiny", "prompt": "x"}
        ) as response:
            assert response.status == 503 and "retry-after" in response.headers
        status, body = await running
        assert status == 200 and len(body["choices"][0]["token_ids"]) == 1200
    assert await asyncio.to_thread(server.process.wait, 30) in CLEAN_EXITS
