"""Real servers of other engines behind a gateway, on the demo model.

Left out unless the environment names the commands that start them, each to be followed by its options::

    VLLM="/path/to/python -m vllm.entrypoints.openai.api_server"
    LLAMA_SERVER="/path/to/llama-server -m /path/to/model.gguf"
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from pydantic import BaseModel

from benchmarks.ports import free_port
from tests.client.processes import ROOT, gateway

VLLM, LLAMA_SERVER = (os.environ.get(name, "") for name in ("VLLM", "LLAMA_SERVER"))
PATIENCE = 240
TOKENS = 200

pytestmark = [pytest.mark.timeout(900)]
needs_vllm = pytest.mark.skipif(not VLLM, reason="VLLM does not name a command")
needs_llama = pytest.mark.skipif(not LLAMA_SERVER, reason="LLAMA_SERVER does not name a command")


class Engine:
    """A server in a process group of its own."""

    def __init__(self, command: Sequence[str], log: Path, variables: dict[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                env=os.environ | variables,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        """As a machine that is gone: the server and all of its processes at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def vllm(log: Path, core: int) -> Engine:
    options = ["--model", str(ROOT / "demo_model/checkpoint"), "--served-model-name", "demo"]
    options += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    options += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Engine([*shlex.split(VLLM), *options], log, variables)


def llama_server(log: Path, core: int) -> Engine:
    options = ["--alias", "demo", "--metrics", "-np", "4", "-c", "2048", "-t", "1"]
    return Engine([*shlex.split(LLAMA_SERVER), *options], log, {})


@asynccontextmanager
async def running(make: Any, count: int, tmp_path: Path) -> AsyncIterator[tuple[list[Engine], Any]]:
    """That many servers and a gateway in front of them; yields a client of it, too."""
    engines = [make(tmp_path / f"engine-{core}", core) for core in range(count)]
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE):
            for engine in engines:
                while not await answers(session, engine):
                    assert engine.process.poll() is None, (tmp_path / "engine-0").read_text()[-5000:]
                    await asyncio.sleep(0.5)
        urls = [engine.url for engine in engines]
        lists: dict[str, Any] = {
            "continuous_batching_server_urls": [],
            "openai_compatible_server_urls": urls,
        }
        async with gateway(tmp_path, urls, **lists) as (_, client):
            async with asyncio.timeout(30):
                while await ready(client) < count:  # noqa: ASYNC110  # what is waited for is elsewhere
                    await asyncio.sleep(0.1)
            yield engines, client
    finally:
        for engine in engines:
            engine.kill()


async def answers(session: aiohttp.ClientSession, engine: Engine) -> bool:
    try:
        async with session.get(f"{engine.url}/v1/models") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def status(client: aiohttp.ClientSession) -> Any:
    async with client.get("/status") as response:
        return await response.json()


async def ready(client: aiohttp.ClientSession) -> int:
    return sum(replica["state"] == "ready" for replica in (await status(client))["replicas"])


async def streamed(client: aiohttp.ClientSession, prompt: str, seen: list[int]) -> str:
    """The text of a greedy completion; `seen` counts events."""
    body = {"model": "demo", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    text = ""
    async with client.post("/v1/completions", json=body | {"stream": True}) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                seen.append(1)
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
            assert not line.startswith(b"event: error"), await response.text()
    return text


@needs_vllm
async def test_streams_of_vllm_survive_its_death(tmp_path: Path) -> None:
    """The text of each is what it is without the kill."""
    things = ("house", "fox", "bear", "garden", "river", "book", "cloud", "song", "hill", "king")
    prompts = [f"Once upon a time, a {one} and a {other}" for one in things for other in things]
    async with running(vllm, 2, tmp_path) as (engines, client):
        seen: list[int] = []
        undisturbed = await asyncio.gather(*(streamed(client, prompt, seen) for prompt in prompts))
        seen.clear()
        streams = asyncio.gather(*(streamed(client, prompt, seen) for prompt in prompts))
        while len(seen) < 10 * len(prompts):  # noqa: ASYNC110  # streams count, without events
            await asyncio.sleep(0.01)
        engines[0].kill()
        texts = await streams
        resumed = (await status(client))["requests"]["resumed_streams"]
        different = sum(a != b for a, b in zip(undisturbed, texts, strict=True))
        print(f"{len(texts)} streams, {resumed} resumed, {different} different")
        assert resumed > 10 and different == 0


class Person(BaseModel):
    name: str
    age: int
    city: str


async def asked(url: str) -> None:
    """The calls of the README by the SDK."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    chat: Any = {"model": "demo", "temperature": 0}
    question: Any = [{"role": "user", "content": "What is the capital of Italy?"}]
    answer = await client.chat.completions.create(messages=question, **chat)
    assert answer.choices[0].message.content == "The capital of Italy is Rome."
    story: Any = [{"role": "user", "content": "Tell me a story about a fox."}]
    chunks = [c async for c in await client.chat.completions.create(messages=story, stream=True, **chat)]
    assert len(chunks) > 20 and "fox" in "".join(c.choices[0].delta.content or "" for c in chunks)
    text: Any = [{"role": "user", "content": "Anna is 34 years old and lives in Paris."}]
    parsed = await client.chat.completions.parse(messages=text, response_format=Person, **chat)
    assert parsed.choices[0].message.parsed == Person(name="Anna", age=34, city="Paris")


@needs_vllm
async def test_the_calls_of_the_readme_reach_vllm(tmp_path: Path) -> None:
    async with running(vllm, 1, tmp_path) as (_, client):
        url = str(client._base_url)
        await asked(url)
        calculator = {
            "name": "calculator",
            "description": "Evaluate an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        }
        sdk = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options: Any = {"model": "demo", "temperature": 0}
        options["tools"] = [{"type": "function", "function": calculator}]
        messages: Any = [{"role": "user", "content": "A book costs 17 dollars. How much do 23 books cost?"}]
        message = (await sdk.chat.completions.create(messages=messages, **options)).choices[0].message
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == {"expression": "17 * 23"}
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "391"}]
        last = await sdk.chat.completions.create(messages=messages, **options)
        assert last.choices[0].message.content == "23 books cost 391 dollars."
        async with client.post("/completion/v2", json={"model": "demo", "prompt": "17 + 25 ="}) as response:
            assert response.status == 404 and "is served by vLLM" in await response.text()
        (shown,) = (await status(client))["replicas"]
        assert (shown["engine"], shown["state"], shown["load"]["waiting"]) == ("vLLM", "ready", 0)
        assert shown["version"]
        wrong = {"model": "demo", "prompt": "x", "max_tokens": 4000}
        async with client.post("/v1/completions", json=wrong) as response:
            error = (await response.json())["error"]
            assert response.status == 400 and error["type"] == "invalid_request_error"
            assert "max_model_len=512" in error["message"]


@needs_llama
async def test_llama_cpp_answers_and_ends_cut_streams_with_an_error(tmp_path: Path) -> None:
    async with running(llama_server, 1, tmp_path) as (engines, client):
        (shown,) = (await status(client))["replicas"]
        assert (shown["engine"], shown["load"]["running"]) == ("llama.cpp", 0) and shown["version"]
        sdk = openai.AsyncOpenAI(base_url=f"{client._base_url}/v1", api_key="none", max_retries=0)
        question: Any = [{"role": "user", "content": "What is the capital of Italy?"}]
        chat = await sdk.chat.completions.create(model="demo", messages=question, max_tokens=16)
        assert chat.choices[0].message.content is not None and chat.usage is not None
        body = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 400, "stream": True}
        async with client.post("/v1/completions", json=body | {"temperature": 0}) as response:
            assert response.status == 200
            await response.content.readline()
            engines[0].kill()
            assert "\nevent: error\n" in (await response.read()).decode()
