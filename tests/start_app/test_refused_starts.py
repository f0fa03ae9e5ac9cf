"""Starts that cannot be: each is one line, and leaves nothing running."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.start_app.conftest import Fake, start_all
from utils.commands import ROOT
from utils.config import ConfigError
from utils.process import processes
from utils.readiness import get_json
from utils.running import Directories, ServiceError
from utils.services import check_gunicorn_config, check_startable


def test_a_port_in_use_is_refused(fake: Fake, directories: Directories) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is in use by another process"):
            start_all(directories, fake(port=port))


def test_two_services_cannot_have_one_port(fake: Fake, directories: Directories) -> None:
    first = fake()
    second = fake(kind="cb_server_app", port=first.options.port)
    with pytest.raises(ServiceError, match=f"{first.name} and {second.name} cannot both have port"):
        check_startable([first, second], directories)


@pytest.mark.parametrize("place", ["run", "logs", "run/{name}.pid", "logs/{name}.log"])
def test_what_cannot_be_written_is_one_line_and_nothing_is_left_running(
    fake: Fake, directories: Directories, place: str
) -> None:
    service = fake()
    in_the_way = directories.run.parent / place.format(name=service.name)
    if in_the_way.suffix:
        in_the_way.mkdir(parents=True)
    else:
        in_the_way.write_text("not a directory")
    with pytest.raises(ServiceError, match=f"^{service.name}: cannot write {in_the_way}: "):
        start_all(directories, service)
    marker = str(directories.run / service.name)
    assert not any(marker in process.command for process in processes())


def test_a_second_start_is_refused_and_harms_nothing(fake: Fake, directories: Directories) -> None:
    service = fake()
    start_all(directories, service)
    with pytest.raises(ServiceError, match=rf"{service.name} runs already \(pid \d+\)"):
        start_all(directories, service)
    assert get_json(service.url, "/ready")[0] == 200


def test_a_start_without_the_packages_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(ROOT / "start_app.py"), "--all"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {sys.executable} has no package 'pydantic'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workers = 4", "workers = 4: a service is one worker"),
        ("workers = ", "SyntaxError: "),
        ("import nothing_of_that_name", "ModuleNotFoundError: "),
    ],
)
def test_a_gunicorn_configuration_that_cannot_work_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "gunicorn_config.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_gunicorn_config(path)
    assert str(caught.value).startswith(f"{path}: {reason}")
    with pytest.raises(ConfigError, match="FileNotFoundError"):
        check_gunicorn_config(tmp_path / "nothing.py")
