"""Keeps an engine process running and carries messages to and from it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio

from server.continuous_batching.config import ServerConfig
from server.continuous_batching.engine import messages
from server.continuous_batching.engine.environment import engine_environment

_ROOT = Path(__file__).resolve().parents[3]
_BACKOFF_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_SECONDS = 60.0
"""An engine that ran for so long has earned a fresh start of the backoff."""

logger = logging.getLogger(__name__)


class EngineRefusedError(Exception):
    """The engine cannot serve the model; the message is one line that says why."""


class EngineSupervisor:
    """Starts the engine process, and starts it again with growing pauses when it dies.

    Args:
        config: given to the process.
        on_ready: called when an engine (the first, or a new one) has loaded the model.
        on_report: called with each report.
        on_lost: called when the process died; whatever it was doing is gone.
    """

    def __init__(
        self,
        config: ServerConfig,
        on_ready: Callable[[messages.Ready], None],
        on_report: Callable[[messages.Report], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._config = config
        self._on_ready = on_ready
        self._on_report = on_report
        self._on_lost = on_lost
        self._directory = tempfile.TemporaryDirectory(prefix="engine-")
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._starts = 0

    @property
    def restarts(self) -> int:
        """How often the engine had to be started again."""
        return max(self._starts - 1, 0)

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the first engine and wait until it is ready.

        Raises:
            EngineRefusedError: it cannot serve the model, or died while loading.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(first))
        await first

    def send(self, message: messages.ToEngine) -> None:
        """Hand a message to the engine; without one the message is dropped (`on_lost` was called)."""
        if self._socket is not None:
            self._socket.send(messages.encode(message))

    async def close(self) -> None:
        """End the process at once and free everything."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._context.destroy(linger=0)
        self._directory.cleanup()

    async def _keep(self, first: asyncio.Future[None]) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            try:
                await self._live(first)
            except EngineRefusedError as error:
                if not first.done():
                    first.set_exception(error)
                    return
                logger.error("the engine cannot be started again: %s", error)
            if not first.done():
                first.set_exception(EngineRefusedError("the engine process died while it loaded the model"))
                return
            failures = 0 if loop.time() - begin > _STEADY_SECONDS else failures + 1
            pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS)) - 1] if failures else 0.0
            logger.error("the engine process ended; starting it again in %g s", pause)
            await asyncio.sleep(pause)

    async def _live(self, first: asyncio.Future[None]) -> None:
        """One life of the process: from its start until it is gone."""
        self._starts += 1
        address = f"ipc://{self._directory.name}/{self._starts}"
        socket = self._context.socket(zmq.PAIR)
        socket.bind(address)
        process = await self._spawn(address)
        self._process = process
        gone = asyncio.create_task(process.wait())
        receiver = asyncio.create_task(self._receive(socket, first))
        try:
            await asyncio.wait((gone, receiver), return_when=asyncio.FIRST_COMPLETED)
            if not receiver.done():  # what it said last may still be on its way
                await asyncio.wait((receiver,), timeout=0.2)
            if receiver.done():
                receiver.result()
        finally:
            receiver.cancel()
            self._socket = self._process = None
            socket.close(linger=0)
            if process.returncode is None:
                process.kill()
            await process.wait()
            self._on_lost()

    async def _spawn(self, address: str) -> asyncio.subprocess.Process:
        environment = engine_environment(os.environ) | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server.continuous_batching.engine.process",
            address,
            stdin=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the server, which drains before it ends us
        )
        assert process.stdin is not None
        settings: dict[str, Any] = self._config.model_dump(mode="json", exclude={"event_token"})
        process.stdin.write(messages.encode_json(settings) + b"\n")
        await process.stdin.drain()
        return process

    async def _receive(self, socket: zmq.asyncio.Socket, first: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while True:
            message = messages.decode_from_engine(await socket.recv())
            if isinstance(message, messages.Report):
                self._on_report(message)
            elif isinstance(message, messages.Refused):
                raise EngineRefusedError(message.message)
            else:
                logger.info("the engine is ready after %.1f s", loop.time() - begin)
                self._socket = socket
                self._on_ready(message)
                if not first.done():
                    first.set_result(None)
