"""The continuous-batching server as a process of its own, and what it takes to hurt it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """Runs `continuous_batching_server_app.py` on a free port.

    Args:
        directory: for the configuration and the log.
        model: checkpoint directory.
        environment: variables to add.
        config: sections to add to the configuration.
    """

    def __init__(
        self,
        directory: Path,
        model: Path,
        *,
        environment: dict[str, str] | None = None,
        model_id: str = "tiny",
        **config: dict[str, Any],
    ) -> None:
        loading = {"model_name_or_path": str(model), "torch_dtype": "float32", "device": "cpu"}
        path = directory / "config.json"
        path.write_text(json.dumps({"model_loading_config": loading, **config}))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        script = ROOT / "continuous_batching_server_app.py"
        options = ["--port", str(self.port), "--model_id", model_id, "--server_config_file_path", str(path)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *options],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            )

    async def ready(self, session: aiohttp.ClientSession, seconds: float = 90.0) -> None:
        """Return once the server takes requests."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                async with session.get(f"{self.url}/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server is not ready:\n{self.log.read_text()[-2000:]}")
            await _pause()

    async def status(self, session: aiohttp.ClientSession) -> dict[str, Any]:
        async with session.get(f"{self.url}/status") as response:
            status: dict[str, Any] = await response.json()
            return status

    async def kill_engine(self, session: aiohttp.ClientSession) -> None:
        os.kill((await self.status(session))["details"]["engine_pid"], signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, as an operator would; returns the exit status."""
        self.process.terminate()
        return self.process.wait(60)


async def _pause() -> None:
    import asyncio

    await asyncio.sleep(0.05)
