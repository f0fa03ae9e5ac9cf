"""Processes that are measured: each runs while a block lasts, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from utils.readiness import health

ROOT = Path(__file__).resolve().parents[1]
_LEAVING_SECONDS = 30.0
_LOOK_SECONDS = 0.05


class StartError(Exception):
    """A process that did not start; the message ends with what it logged last."""


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: what it has started is ended, too. Threads cannot have that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    core: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """`command`, running at the root of the project while the block lasts.

    Args:
        command: program and arguments.
        log: where its output goes.
        environment: variables to add.
        core: the only processor that it may use; None: any.
    """
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    with _interrupted_by_sigterm():
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*pinned, *map(str, command)],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt is for who measures
            )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_LEAVING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(
    name: str,
    url: str,
    process: subprocess.Popen[bytes],
    log: Path,
    timeout: float = 900.0,
    is_ready: Callable[[str], bool] = lambda url: health(url).ready,
) -> float:
    """Seconds until the service `name` at `url` says that it takes requests.

    Raises:
        StartError: `process` ended, or `timeout` seconds passed.
    """
    begin = time.monotonic()
    with tqdm(desc=f"starting {name}", bar_format="{desc}: {elapsed}", leave=False) as bar:
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > begin + timeout:
                raise StartError(f"{name} did not start:\n{tail(log)}")
            time.sleep(_LOOK_SECONDS)
            bar.update()
    return time.monotonic() - begin


def tail(log: Path, lines: int = 10) -> str:
    """The last lines of `log`."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def family(pid: int) -> set[int]:
    """`pid` and all processes that descend from it, also in sessions of their own (Linux)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it ended meanwhile
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, unseen = set(), [pid]
    while unseen:
        found.add(member := unseen.pop())
        unseen += children.get(member, [])
    return found
