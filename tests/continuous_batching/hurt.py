"""A server whose engine can be hurt, and requests that go on meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.continuous_batching.server_process import ROOT, ServerProcess
from utils.process import processes

BOUND_SECONDS = 30.0
"""Within which an engine has been replaced, or its requests are refused."""
CONFIG: dict[str, dict[str, Any]] = {
    "batcher_config": {"batch_max_beams": 8, "step_timeout_seconds": 3},
    "cache_config": {"num_blocks": 300, "num_blocks_cpu": 60, "block_size": 8},
}
PROMPTS = [[5 + 3 * i, 6, 7 + i] for i in range(6)]


class Hurt:
    """A server whose engine can be hurt, and what became of the requests sent meanwhile."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.model = directory / "model"
        shutil.copytree(model, self.model)
        self.fault = directory / "fault"
        faults = Path(__file__).parent / "faults"
        environment = {"FAULT_FILE": str(self.fault), "PYTHONPATH": os.pathsep.join([str(faults), str(ROOT)])}
        self.server = ServerProcess(directory, self.model, environment=environment, **CONFIG)
        self.outcomes: Counter[str] = Counter()
        self.expected: dict[int, str] = {}
        self.recoveries: defaultdict[str, list[float]] = defaultdict(list)
        """Seconds from each hurt until requests are answered again, or refused with the reason."""

    @asynccontextmanager
    async def started(self, *, stop: bool = True) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(
            self.server.url, timeout=aiohttp.ClientTimeout(BOUND_SECONDS)
        ) as http:
            self.http = http
            try:
                await self.server.ready(http)
                for i in range(len(PROMPTS)):
                    self.expected[i] = json.loads(await self._whole(i))["choices"][0]["text"]
                yield
            finally:
                if stop:
                    self.server.stop()

    # -- requests ------------------------------------------------------------------------------

    def _body(self, number: int, tokens: int = 60, **more: Any) -> dict[str, Any]:
        config = {"max_new_tokens": tokens, "ignore_eos": True}
        return {"model": "tiny", "prompt": PROMPTS[number], "generation_config": config, **more}

    async def _whole(self, number: int, tokens: int = 60) -> str:
        async with self.http.post("/completion/v2", json=self._body(number, tokens)) as response:
            return await response.text()

    async def _stream(self, number: int, tokens: int = 60) -> str:
        """The text of a stream, or its error, as a whole answer has them."""
        text = ""
        body = self._body(number, tokens, stream=True)
        async with self.http.post("/completion/v2", json=body) as response:
            if response.status != 200:
                return await response.text()
            async for line in response.content:
                if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return line[6:].decode()
                text += "".join(choice["text"] for choice in event["choices"])
        return json.dumps({"choices": [{"text": text}]})

    async def ask(self, number: int, *, stream: bool = False, tokens: int = 60) -> str:
        """One of: right, wrong, refused (with a reason), failed (500), lost (no end within the bound)."""
        try:
            answer = json.loads(await (self._stream if stream else self._whole)(number, tokens))
        except (TimeoutError, aiohttp.ClientError, ValueError):
            return "lost"
        if "error" in answer:
            known = (
                answer["error"]["code"] in ("engine_lost", "loading", "failed") and answer["error"]["message"]
            )
            return "refused" if known else f"failed: {answer}"
        return "right" if answer["choices"][0]["text"] == self.expected[number] else "wrong"

    async def _load(self, number: int) -> None:
        rng = random.Random(number)
        while True:
            outcome = await self.ask(number, stream=rng.random() < 0.5)
            self.outcomes[outcome] += 1
            await asyncio.sleep(0.3 if outcome == "refused" else 0.01)

    async def _leave(self) -> None:
        """Begin streams and go away, which cancels them."""
        while True:
            async with self.http.post("/completion/v2", json=self._body(0, stream=True)) as response:
                await response.content.readany()
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def under_load(self, *, leaving: bool = True) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._load(i)) for i in range(len(PROMPTS))]
        if leaving:
            tasks.append(asyncio.create_task(self._leave()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- hurting -------------------------------------------------------------------------------

    async def engine_pid(self) -> int | None:
        return (await self.server.status(self.http))["details"]["engine_pid"]  # type: ignore[no-any-return]

    async def health(self) -> str | None:
        """What is wrong, as ``/health`` tells it."""
        async with self.http.get("/health") as response:
            body = await response.json()
            return None if response.status == 200 else body["error"]["message"]

    async def until(self, holds: Callable[[], Any]) -> Any:
        """The first result of `holds` that is true."""
        async with asyncio.timeout(BOUND_SECONDS):
            while not (result := await holds()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return result

    def inject(self, fault: str) -> None:
        written = self.fault.with_suffix(".new")
        written.write_text(fault)
        written.rename(self.fault)

    async def hurt(self, how: str) -> None:
        """Hurt the engine, see that the server tells so and recovers, and that nothing is left behind."""
        await self.until(self.busy)
        pid = await self.engine_pid()
        assert pid is not None
        away = self.model.with_name("away")
        if how in ("refuse", "raise Refused"):
            self.model.rename(away)
        if how.startswith(("raise", "hang", "loop")):
            self.inject(how)
        if how == "stop":
            os.kill(pid, signal.SIGSTOP)
        elif how in ("kill", "kill loading", "refuse", "raise Refused", "raise Loading", "raise Ready"):
            os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        reason = await self.until(self.health)
        assert reason
        if how == "kill loading":
            await self.until(lambda: self._another(pid))
            await asyncio.sleep(0.3)
            os.kill(await self.until(self.engine_pid), signal.SIGKILL)
        if how in ("refuse", "raise Refused"):
            await self.until(self._failed)
            assert await self.ask(0) == "refused"
            self._mended(f"{how}, until refused", begin)
            away.rename(self.model)
            begin = time.monotonic()
        await self.until(self._answers)
        self._mended(how, begin)
        right = self.outcomes["right"]
        await self.until(lambda: self._load_answered(right))
        assert await self.health() is None
        assert not self.fault.exists(), "the fault did not happen"
        assert await self.engine_pid() != pid
        assert self.engines() == [await self.engine_pid()]

    def _mended(self, how: str, begin: float) -> None:
        seconds = time.monotonic() - begin
        self.recoveries[how].append(seconds)
        assert seconds <= BOUND_SECONDS, f"{how}: {seconds:.1f} s"

    async def busy(self) -> bool:
        load = (await self.server.status(self.http))["load"]
        return bool(load["running"] or load["pending_tokens"])

    async def queueing(self) -> bool:
        return bool((await self.server.status(self.http))["load"]["waiting"] > 20)

    async def _another(self, pid: int) -> bool:
        return await self.engine_pid() not in (None, pid)

    async def _failed(self) -> bool:
        return (await self.server.status(self.http))["state"] == "failed"

    async def _answers(self) -> bool:
        return await self.ask(0) == "right"

    async def _load_answered(self, right: int) -> bool:
        """Whether the load has had a right answer, so that it meets each hurt in the middle of its work."""
        return self.outcomes["right"] > right

    def engines(self) -> list[int]:
        """The processes that live of those that the server started; they inherit its environment."""
        mark = f"FAULT_FILE={self.fault}".encode()
        found = []
        for process in processes():
            with suppress(OSError):
                variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                if mark in variables and process.pid != self.server.process.pid:
                    found.append(process.pid)
        return found
