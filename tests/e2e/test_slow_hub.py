"""A server that looks up its model on a hub that does not answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from tests.e2e.stack import ROOT, children
from tests.e2e.test_failed_starts import config_for

SCRIPTS = {"cb": "continuous_batching_server_app.py", "sb": "static_batching_server_app.py"}


@contextmanager
def loading(kind: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in the foreground whose hub accepts connections and never answers."""
    config = config_for(kind, directory, model_name_or_path="some-organization/some-model")
    command = [sys.executable, str(ROOT / SCRIPTS[kind]), "--port", str(free_port())]
    command += ["--server_config_file_path", str(config)]
    with socket.create_server(("127.0.0.1", 0)) as hub:
        temporary = {"TMPDIR": str(directory), "HF_HUB_OFFLINE": "0", "HF_HOME": str(directory / "hub")}
        environment = os.environ | temporary | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}"}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                hub.settimeout(60)
                hub.accept()
                assert process.stderr is not None
                next(line for line in process.stderr if "Uvicorn running on" in line)
                yield process
            finally:
                process.kill()


@pytest.mark.parametrize("kind", SCRIPTS)
def test_ctrl_c_ends_it_at_once(tmp_path: Path, kind: str) -> None:
    with loading(kind, tmp_path) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in errors
    assert not [*tmp_path.glob("engine-*")]


def test_the_loss_of_its_engine_ends_it(tmp_path: Path) -> None:
    with loading("cb", tmp_path) as process:
        (engine,) = children(process.pid)
        os.kill(engine, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    (line,) = [line for line in errors.splitlines() if "ERROR" in line]
    assert line.endswith("while it loaded the model, the engine process was killed by SIGKILL")
