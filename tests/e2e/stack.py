"""A real stack for tests: `start_app.py` in a subprocess, plain HTTP from outside."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ports import free_port
from utils.options import CONFIGS
from utils.process import processes
from utils.running import Directories, Running, find

ROOT = CONFIGS.parent
MODEL_DIRECTORY = ROOT / "demo_model" / "checkpoint"
MODEL = "demo"
IN_FOREGROUND = {
    "client_app.py": "/health",
    "continuous_batching_server_app.py": "/ready",
    "static_batching_server_app.py": "/ready",
}
"""Scripts that serve until Ctrl-C, each with the route that says when it does."""
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def message(self) -> str:
        """The message of an error answer."""
        return str(self.json["error"]["message"])


def call(url: str, path: str, body: Any = None, *, method: str | None = None) -> Answer:
    """GET `path`, or POST where there is a `body` (bytes as they are, anything else as JSON)."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_SECONDS)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, names, answer.read().decode())
    finally:
        connection.close()


@dataclass(frozen=True)
class Done:
    """A finished run of `start_app.py`."""

    code: int
    output: str
    errors: str


@dataclass
class Stack:
    """Services under one run directory, on ports of their own."""

    directory: Path
    ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(3)])

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def cb_server(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    @property
    def sb_server(self) -> str:
        return f"http://127.0.0.1:{self.ports[2]}"

    def start_app(self, *arguments: str) -> Done:
        """Run ``start_app.py`` with `arguments` for this stack, from a foreign directory."""
        command = [sys.executable, str(ROOT / "start_app.py"), *arguments]
        command += ["--run_dir", str(self.directory / "run")]
        if not {"--status", "--stop"} & {*arguments}:
            command += ["--log_dir", str(self.directory / "logs")]
        for kind, port in zip(("client", "cb_server", "sb_server"), self.ports, strict=True):
            if {"--all", f"--start_{kind}_app"} & {*arguments}:
                command += [f"--{kind}_port", str(port)]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        return Done(done.returncode, done.stdout, done.stderr)

    def running(self, kind: str) -> Running:
        """The started service whose name begins with `kind`."""
        directories = Directories(self.directory / "run", self.directory / "logs")
        return next(service for service in find(directories) if service.name.startswith(kind))

    def logs(self) -> str:
        """All that the services logged."""
        return "\n".join(path.read_text() for path in sorted((self.directory / "logs").glob("*.log")))


def children(parent: int) -> set[int]:
    """The ids of the processes that `parent` started."""
    found = set()
    for process in processes():
        with suppress(OSError):
            if int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.add(process.pid)
    return found


def damaged_model(directory: Path) -> Path:
    """A copy of the demo model whose weights are cut off."""
    model = directory / "model"
    shutil.copytree(MODEL_DIRECTORY, model)
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    return model
