"""The engine process as its starter sees it."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.continuous_batching.environment import engine_environment
from server.continuous_batching.phases import StartClock
from server.continuous_batching.socket_paths import socket_root
from server.continuous_batching.start_pipe import send_part

if TYPE_CHECKING:
    import zmq


class SpawnedEngine:
    """An engine process from its start on. It imports torch while its configuration is still being read.

    Attributes:
        address: of the socket that it connects to; see `listen`.
        start_clock: where the time of its start goes, or went.
        configured: done when all startup data is sent or the process has ended; None before `configure`.
        module: what the process runs; benchmarks set another.
    """

    module = "server.continuous_batching.engine_process"

    def __init__(self) -> None:
        self.start_clock = StartClock("process")
        self._directory = Path(socket_root(), f"engine-{secrets.token_hex(8)}")
        self.address = f"ipc://{self._directory}/socket"
        self.configured: Future[None] | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, self.address, str(os.getpid())],
            stdin=subprocess.PIPE,
            env=engine_environment(os.environ),
            start_new_session=True,  # Ctrl-C is for the server, which drains before it ends us
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def listen(self, socket: zmq.Socket[Any]) -> None:
        """Bind the socket that the engine connects to."""
        self._directory.mkdir(mode=0o700)
        socket.bind(self.address)

    def remove_socket(self) -> None:
        """Delete the socket file. A connected engine no longer needs it."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def configure(self, parts: Iterable[bytes]) -> None:
        """Send the engine its startup data (`start_pipe`) from a thread; the pipe stays open afterwards.

        Args:
            parts: may block. If it raises, so does `configured`.
        """
        thread = ThreadPoolExecutor(1, "start-pipe")
        self.configured = thread.submit(self._send, parts)
        thread.shutdown(wait=False)

    def _send(self, parts: Iterable[bytes]) -> None:
        assert self._process.stdin is not None
        for part in parts:
            try:
                send_part(self._process.stdin, part)
            except (OSError, ValueError):  # the process has ended, as `ended` reports
                return

    async def ended(self) -> int:
        """Its exit status, once it has ended; negative: the number of the signal that ended it."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def tell(status: int) -> None:
            if not ended.done():
                ended.set_result(status)

        def wait() -> None:
            status = self._process.wait()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, status)

        threading.Thread(target=wait, name="engine-end", daemon=True).start()
        return await ended

    def kill(self) -> None:
        """End it at once, and the compilers that it started: all of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self.remove_socket()
