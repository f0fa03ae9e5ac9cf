"""The README followed line by line: a clean clone, a plain shell, every command as printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import IN_FOREGROUND, ROOT

PLAIN = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
"""The environment of a plain shell: no virtual environment is active."""
PRIVATE_NETWORK = ("unshare", "--user", "--map-root-user", "--net")
"""The README's ports are free here, whoever else uses them on this machine."""
LOOPBACK_UP = """
import fcntl, socket, struct
with socket.socket() as any_socket:  # SIOCSIFFLAGS: IFF_UP
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 1))
"""
STEP = "@@ step"
START = ".venv/bin/python start_app.py"


def steps() -> list[str]:
    """The README's blocks of commands and of Python, in order, as shell scripts."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = []
    for language, block in re.findall(r"```(shell|python)\n(.*?)```", text, re.S):
        if language == "python":
            found.append(f".venv/bin/python - <<'END'\n{block}END")
        elif "client_app.py --port" in block:  # they run until Ctrl-C: tests/e2e/test_life.py starts them
            scripts = [[".venv/bin/python", script, "--port"] for script in IN_FOREGROUND]
            assert [line.split()[:-1] for line in block.splitlines()] == scripts
        else:
            found.append(block.rstrip())
    # what the first block stops, those behind it ask
    assert "make stop" in found[0] and "make stop" in "".join(found[1:])
    return [found[0].replace("make stop", ": make stop"), *found[1:]]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The files of the repository, with the packages of this environment as its ``.venv``."""
    if sys.prefix == sys.base_prefix or not shutil.which("make") or not shutil.which("curl"):
        pytest.skip("needs make, curl and a virtual environment")
    clone = tmp_path / "clone"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    environment, here = Path(sys.prefix), clone / ".venv"
    here.mkdir()
    shutil.copy(environment / "pyvenv.cfg", here)
    for part in ("bin", "lib", "include", "lib64"):
        (here / part).symlink_to(environment / part)
    (here / ".serve-installed").touch()  # newer than what it is made from
    yield clone
    subprocess.run([sys.executable, "start_app.py", "--stop"], cwd=clone, check=True)


def follow(clone: Path, commands: list[str]) -> list[str]:
    """What each of `commands` printed in one plain shell, which ends at the first that fails."""
    if subprocess.run([*PRIVATE_NETWORK, "true"], capture_output=True).returncode:
        pytest.skip("needs a network of its own: unshare is not permitted")
    script = "\n".join(["set -e", f"{shlex.quote(sys.executable)} -c {shlex.quote(LOOPBACK_UP)}"])
    script += "".join(f"\necho '{STEP}'\n{command}" for command in commands)
    shell = [*PRIVATE_NETWORK, "bash", "-c", script]
    environment = PLAIN | {"HOME": os.environ.get("HOME", "/")}
    if "OMP_NUM_THREADS" in os.environ:  # the suite's share of the cores, see tests/conftest.py
        environment["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    done = subprocess.run(shell, cwd=clone, env=environment, capture_output=True, text=True, timeout=280)
    printed = done.stdout.split(f"{STEP}\n")[1:]
    assert done.returncode == 0, f"{commands[len(printed) - 1]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return printed


def choices(text: str) -> list[Any]:
    """The choices of the last JSON answer in `text`."""
    return json.loads([line for line in text.splitlines() if line.startswith('{"')][-1])["choices"]


@pytest.mark.timeout(300)
def test_every_command_works_as_printed(clone: Path) -> None:
    commands = steps()
    printed = follow(clone, commands)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    answers = re.findall(r'^{"(?:id|choices)".*}$', text, re.M)
    asked = [said for command, said in zip(commands, printed, strict=True) if "curl http" in command]
    assert choices(printed[0]) == choices(answers[0])
    for said, answer in zip(asked, answers[1:], strict=False):
        assert choices(said) == choices(answer)
    assert "The capital of Italy is Rome." in "".join(printed)
    assert not list((clone / "run").glob("*.pid"))


@pytest.mark.timeout(300)
def test_make_stop_works_with_any_environment_and_port(clone: Path) -> None:
    first, second = "make serve PORT_BASE=18400", f"{START} --start_client_app --client_port 18410"
    status = f"{START} --status || true"
    printed = follow(
        clone,
        [
            f"{first}; {second}",
            f"make stop PORT_BASE=18400; {status}",
            f"mv .venv away; make stop VENV=nowhere PYTHON=python3; mv away .venv; {status}",
        ],
    )
    names = ["client_app-18410"]
    assert [line.split()[0] for line in printed[1].splitlines() if " pid " in line] == names
    assert printed[2].splitlines()[-1] == "nothing is running"
