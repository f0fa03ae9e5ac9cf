"""Hostile clients of every kind. Each is one visit, made again and again."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from tests.raw_http import connected, response
from tests.serving import eventually

KEY, EVENT_TOKEN = "good-key", "event-token"
POST = "POST {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n"


def post(path: str, *fields: str) -> bytes:
    return POST.format(path, "".join(f + "\r\n" for f in fields)).encode()


AUTHORIZED = f"Authorization: Bearer {KEY}"


async def until_cut(port: int, head: bytes, piece: bytes, pause: float) -> None:
    """Send `head` and pieces without end, until the gateway has had enough."""
    async with connected(port) as (reader, writer):
        ended = asyncio.create_task(reader.read())
        try:
            writer.write(head)
            async with asyncio.timeout(60):
                while not ended.done():
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause)
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)


async def spelled_otherwise(port: int) -> None:
    for end in ("%0A", "%0a?x", "/", "//", ";x", "%00"):
        async with connected(port) as (reader, writer):
            writer.write(post("/v1/completions" + end, "Content-Length: 2") + b"{}")
            status, _, _ = await response(reader)
            assert status in (401, 404), (end, status)


async def trailers(port: int) -> None:
    async with connected(port) as (reader, writer):
        head = post("/completion/v2", "Authorization: Bearer bad", "Transfer-Encoding: chunked")
        writer.write(head + b"2\r\n{}\r\n0\r\n" + AUTHORIZED.encode() + b"\r\n\r\n")
        assert (await response(reader))[0] == 401


async def endless_head(port: int) -> None:
    await until_cut(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 100_000, 0)


async def many_fields(port: int) -> None:
    await until_cut(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: a\r\n" * 1000, 0)


async def head_drips(port: int) -> None:
    await until_cut(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"a", 0.5)


async def body_drips(port: int) -> None:
    await until_cut(port, post("/completion/v2", AUTHORIZED, "Content-Length: 10000000"), b" ", 0.5)


async def large_body_drips(port: int) -> None:
    head = post("/completion/v2", AUTHORIZED, "Content-Length: 16000000") + b" " * 8_000_000
    await until_cut(port, head, b" ", 0.5)


async def event_without_token(port: int) -> None:
    head = post("/event/server_startup", "Transfer-Encoding: chunked", "Content-Type: application/json")
    await until_cut(port, head, b"10000\r\n" + b" " * 2**16 + b"\r\n", 0)


async def tiny_chunks(port: int) -> None:
    head = post("/completion/v2", AUTHORIZED, "Transfer-Encoding: chunked")
    await until_cut(port, head, b"1;a=b\r\n \r\n" * 1000, 0)


async def pipelines(port: int) -> None:
    await until_cut(port, b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000, 0)


async def does_not_read(port: int) -> None:
    body = {"model": "m", "prompt": "x", "stream": True, "generation_config": {"max_new_tokens": 100_000}}
    data = json.dumps(body).encode()
    async with connected(port) as (_, writer):
        writer.write(post("/completion/v2", AUTHORIZED, f"Content-Length: {len(data)}") + data)
        await asyncio.sleep(5)


async def leaves_early(port: int) -> None:
    data = json.dumps({"model": "m", "prompt": "x", "generation_config": {"max_new_tokens": 1000}}).encode()
    async with connected(port) as (_, writer):
        writer.write(post("/completion/v2", AUTHORIZED, f"Content-Length: {len(data)}") + data)
        await asyncio.sleep(0.05)


async def idles(port: int) -> None:
    async with connected(port) as (reader, _):
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                await reader.read()


async def rude_requests(port: int) -> None:
    """From a foreign page, to others' requests, with fields that are not for clients."""
    resume = {"created": 1, "choices": [{"token_ids": [1], "finished": False}]}
    data = json.dumps({"model": "m", "prompt": "x", "priority": -100, "resume": resume}).encode()
    length = f"Content-Length: {len(data)}"
    for raw in (
        post("/completion/v2", "Origin: http://evil.example", "Content-Type: text/plain", length) + data,
        post("/completion/v2", "Host: evil.example", length) + data,
        b"GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"DELETE /requests/good-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        post("/event/server_shutdown", "Content-Length: 2") + b"{}",
    ):
        async with connected(port) as (reader, writer):
            writer.write(raw)
            status, _, _ = await response(reader)
            assert status in (400, 401, 403), (raw, status)


async def reads_what_is_not_for_all(port: int) -> None:
    for path in ("/metrics", "/status", "/status/history", "/v1/models", "/requests/good-1"):
        async with connected(port) as (reader, writer):
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            status, _, body = await response(reader)
            assert status == 401 and b"127.0.0.1" not in body, (path, status)


NEVER_JOIN = {
    "http://169.254.169.254:80": 403,
    "http://10.9.8.7:1": 403,
    "http://127.0.0.1:1/x": 422,
}


async def joins(port: int) -> None:
    """With the token: one of far more than may join, none of which is there, and one that never may."""
    absent = random.randrange(1, 100)
    never, refusal = random.choice(list(NEVER_JOIN.items()))
    for url, expected in ((f"http://127.0.0.1:{absent}", {200, 429}), (never, {refusal})):
        data = json.dumps({"url": url, "service": "continuous_batching", "model_id": "m"}).encode()
        fields = (
            f"Authorization: Bearer {EVENT_TOKEN}",
            "Content-Type: application/json",
            "X-Forwarded-For: 10.9.8.7",
            f"Content-Length: {len(data)}",
        )
        async with connected(port) as (reader, writer):
            writer.write(post("/event/server_startup", *fields) + data)
            status, _, body = await response(reader)
            assert status in expected, (url, status, body)


Visit = Callable[[int], Coroutine[Any, Any, None]]
HOSTILE: dict[Visit, int] = {
    spelled_otherwise: 2,
    trailers: 2,
    endless_head: 2,
    many_fields: 2,
    head_drips: 200,
    body_drips: 200,
    large_body_drips: 10,
    event_without_token: 2,
    tiny_chunks: 2,
    pipelines: 2,
    does_not_read: 20,
    leaves_early: 5,
    idles: 300,
    rude_requests: 2,
    reads_what_is_not_for_all: 2,
    joins: 2,
}
"""How many of each there are at any time."""
AWAITED = {visit.__name__ for visit in HOSTILE.keys() - {head_drips, idles}}
"""Kinds of visit that must complete at least once in every siege. The other two take 10 s and longer."""


def attack(port: int, seconds: float, results: Any) -> None:
    """All hostile clients, in a process of their own; the visits of each, and what went wrong.

    Args:
        seconds: minimum duration; extended by up to a minute until each `AWAITED` visit has completed once.
    """
    os.nice(15)  # the probe may share a core with this, and is to time the gateway
    visits: Counter[str] = Counter()
    wrong: list[str] = []

    async def again_and_again(visit: Visit) -> None:
        while True:
            try:
                await visit(port)
            except AssertionError as error:
                wrong.append(f"{visit.__name__}: {error}")
            except (OSError, asyncio.IncompleteReadError):
                pass  # cut off, as it should be
            visits[visit.__name__] += 1
            await asyncio.sleep(0.02)

    async def main() -> None:
        tasks = [
            asyncio.create_task(again_and_again(visit))
            for visit, count in HOSTILE.items()
            for _ in range(count)
        ]
        await asyncio.sleep(seconds)
        with suppress(TimeoutError):
            await eventually(lambda: visits.keys() >= AWAITED, 60)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    results.put((dict(visits), wrong))
