"""A process that is measured: nothing of it is left when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.2


def environment(site: Path | None) -> dict[str, str]:
    """Of a child process; vLLM's telemetry and optional sampler are off."""
    path = os.pathsep.join([*([str(site)] if site else []), os.getcwd(), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **offline}


class Child:
    """A process that writes to `log`; one started with ``--gate`` measures once for each line on its input.

    Args:
        command: program and arguments.
        environment: all of its variables.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def go(self) -> None:
        """Let it measure once."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def says(self, words: str, seconds: float, times: int = 1) -> bool:
        """Whether `words` appear at least `times` times in its log; waits up to `seconds` for them."""
        end = time.monotonic() + seconds
        while True:
            over = self.process.poll() is not None or time.monotonic() >= end
            if self.log.read_bytes().count(words.encode()) >= times:
                return True
            if over:
                return False
            time.sleep(LOOK_SECONDS)

    def end(self, seconds: float) -> int | str:
        """Its exit status, after `seconds` at most; what still runs is killed."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.close()  # no further turn
        try:
            return self.process.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            return "out of time"
        finally:
            with suppress(ProcessLookupError):  # its own children too: they hold GPU memory
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
