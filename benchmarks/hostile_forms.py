"""What hostile forms cost the others.

    .venv/bin/python -m benchmarks.hostile_forms --requests 1000

Starts a continuous-batching server with the demo model. One client streams answers without a form all the
time; others send forms that are meant to take long, to nest deep or to be large. Prints the longest gaps
between two events of the stream, with and without them, the growth of memory, and what the others
were told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.continuous_batching.server_process import ROOT, ServerProcess

Body = dict[str, Any]


def nested(depth: int, inner: str = "{}") -> str:
    """A schema as text, so deep that many a reader of JSON gives up."""
    return '{"type":"array","items":' * depth + inner + "}" * depth


def tools(count: int) -> list[Body]:
    properties = {f"field_{i}": {"type": "string", "pattern": "^(a+)+$"} for i in range(20)}
    parameters = {"type": "object", "properties": properties}
    return [
        {"type": "function", "function": {"name": f"tool_{i}", "parameters": parameters, "strict": True}}
        for i in range(count)
    ]


def twice_at_each_level(levels: int) -> Body:
    """Twice as many ways on at each level."""
    definitions: Body = {
        f"a{i}": {"type": "object", "properties": {key: {"$ref": f"#/$defs/a{i + 1}"} for key in "xy"}}
        for i in range(levels)
    }
    return {"$defs": definitions | {f"a{levels}": {"type": "null"}}, "$ref": "#/$defs/a0"}


def endless(ways: int) -> Body:
    return {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * ways}}, "$ref": "#/$defs/a"}


def products(factors: int) -> Body:
    return {
        "allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(factors)]
    }


def fields(count: int) -> Body:
    return {"type": "object", "properties": {f"p{i}": {} for i in range(count)}}


FORMS: list[Callable[[random.Random], Body]] = [
    lambda dice: {"regex": "(a+)+" * dice.randint(1, 200) + "b"},
    lambda dice: {"regex": "(a|aa|aaa)*" * dice.randint(1, 50) + "$"},
    lambda dice: {"regex": f"((x{{1,{dice.randint(10, 1000)}}}){{1,1000}}){{1,1000}}"},
    lambda dice: {"regex": "(" * dice.randint(100, 10_000) + "a"},
    lambda dice: {"regex": rf"(\p{{L}}|\p{{N}}){{{dice.randint(100, 3000)}}}"},
    lambda dice: {"regex": f"(a|b)*a(a|b){{{dice.randint(5, 30)}}}"},
    lambda dice: {"json": nested(dice.randint(60, 10_000))},
    lambda dice: {"json": {"enum": [f"value {i}" for i in range(10 ** dice.randint(3, 6))]}},
    lambda dice: {"json": json.dumps({"enum": [{}] * 10 ** dice.randint(3, 6)})},
    lambda dice: {"json": endless(dice.randint(1, 9))},
    lambda dice: {"json": twice_at_each_level(dice.randint(5, 200))},
    lambda dice: {"json": fields(dice.randint(100, 5000))},
    lambda dice: {"json": {"type": "number", "multipleOf": dice.choice([1e-9, 1000003, 9973, 0.37])}},
    lambda dice: {"json": {"type": "string", "maxLength": 10 ** dice.randint(3, 12)}},
    lambda dice: {"json": {"type": "array", "items": {}, "minItems": 10 ** dice.randint(3, 12)}},
    lambda dice: {"json": products(dice.randint(3, 12))},
    lambda dice: {"choice": [f"choice {i}" for i in range(dice.randint(1000, 20_000))]},
    lambda dice: {"grammar": "start: " + "(" * dice.randint(50, 20_000) + '"a"'},
    lambda dice: {"grammar": 'start: a\na: a a | "x" | a a a |\n'},
    lambda dice: {"grammar": "start: " + " ".join("/a*/" for _ in range(dice.randint(10, 300)))},
]


def hostile(dice: random.Random) -> tuple[str, Body]:
    """A path and a body."""
    if dice.random() < 0.1:
        message = {"role": "user", "content": "x"}
        body = {"messages": [message], "tools": tools(dice.randint(10, 128)), "tool_choice": "required"}
        return "/v1/chat/completions", {"model": "demo", "max_tokens": 20, **body}
    form = dice.choice(FORMS)(dice)
    return "/v1/completions", {"model": "demo", "prompt": "x", "max_tokens": 20, "structured_outputs": form}


class Watcher:
    """Streams answers one after the other and notes the seconds between their events.

    A process of its own, which nothing else holds up.
    """

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._found: Queue[list[float]] = context.Queue()
        self._process = context.Process(target=watch, args=(url, self._stop, self._found), daemon=True)
        self._process.start()

    def end(self) -> list[float]:
        """All gaps in order of length."""
        self._stop.set()
        found = self._found.get()
        self._process.join()
        return sorted(found)


def watch(url: str, stop: Event, found: Queue[list[float]]) -> None:
    found.put(asyncio.run(gaps_of(url, stop)))


async def gaps_of(url: str, stop: Event) -> list[float]:
    found = []
    options = {"max_new_tokens": 1000, "ignore_eos": True}
    async with aiohttp.ClientSession(url) as session:
        while not stop.is_set():
            body = {"model": "demo", "prompt": "Once", "stream": True, "generation_config": options}
            async with session.post("/completion/v2", json=body) as response:
                last = None
                async for _ in response.content.iter_any():
                    now = time.perf_counter()
                    if last is not None:
                        found.append(now - last)
                    last = now
    return found


def written(count: int) -> list[tuple[str, bytes]]:
    """Paths and bodies, made in advance: making a large one would hold up the other attackers."""
    dice = random.Random(7)
    return [(path, json.dumps(body).encode()) for path, body in (hostile(dice) for _ in range(count))]


def attack(url: str, count: int, at_once: int) -> tuple[float, Counter[str]]:
    """Send `count` hostile requests; (seconds, what they were told).

    In a process of its own, which takes what the others leave of the processors: those who attack have
    machines of their own.
    """
    os.nice(19)
    return asyncio.run(_attack(url, written(count), at_once))


async def _attack(url: str, requests: list[tuple[str, bytes]], at_once: int) -> tuple[float, Counter[str]]:
    told: Counter[str] = Counter()
    turn, begin = asyncio.Semaphore(at_once), time.perf_counter()
    async with aiohttp.ClientSession(url, headers={"Content-Type": "application/json"}) as session:

        async def one(path: str, body: bytes) -> None:
            async with turn, session.post(path, data=body) as response:
                answer = await response.json()
                error = answer.get("error")
                told[f"{response.status} {'' if error is None else error['code']}".strip()] += 1

        await asyncio.gather(*(one(path, body) for path, body in requests))
    return time.perf_counter() - begin, told


def memory(server: ServerProcess) -> float:
    """MiB of the server's processes."""
    process = psutil.Process(server.process.pid)
    each = [process, *process.children(recursive=True)]
    return sum(one.memory_info().rss for one in each) / 2**20


async def wait_until_ready(server: ServerProcess) -> None:
    async with aiohttp.ClientSession() as session:
        await server.ready(session)


def measure(server: ServerProcess, count: int, at_once: int) -> int:
    asyncio.run(wait_until_ready(server))
    for name, attacks in (("alone", 0), ("first hostile forms", count // 2), ("more of them", count // 2)):
        watcher = Watcher(server.url)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as attacker:
            seconds, told = attacker.submit(attack, server.url, attacks, at_once).result()
        time.sleep(max(0.0, 10.0 - seconds))
        gaps = watcher.end()
        longest = ", ".join(f"{1000 * gap:.0f}" for gap in gaps[:-6:-1])
        print(
            f"{name}: {seconds:.1f} s, longest gaps {longest} ms, "
            f"median {1000 * gaps[len(gaps) // 2]:.1f} ms, memory {memory(server):.0f} MiB, {dict(told)}",
            flush=True,
        )
        if any(status.startswith("5") for status in told):
            return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = ServerProcess(Path(directory), ROOT / "demo_model" / "checkpoint", model_id="demo")
        try:
            return measure(server, arguments.requests, arguments.at_once)
        finally:
            server.process.kill()
            server.process.wait()


if __name__ == "__main__":
    sys.exit(main())
