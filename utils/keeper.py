"""Keeps a program of someone else running as a service: what gunicorn does for our own apps.

The keeper leads the process group that `utils.running` looks at. It passes SIGTERM on, starts the program
again when it dies, and leaves nothing of it behind.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from urllib.parse import urlsplit

from utils.parent import signal_at_parent_death
from utils.process import processes, wait_until

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_LOOK_SECONDS = 0.2
_HTTP_SECONDS = 5.0


def answers(url: str, path: str) -> bool:
    """Whether a GET of `path` at `url` is answered with 200."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_HTTP_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Keeper:
    """Runs `command` until the keeper is told to end.

    Args:
        command: the program and its arguments.
        environment: all of its variables.
        ready: whether the program takes requests. One that ends before it ever did is not started again.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        ready: Callable[[], bool],
    ) -> None:
        self._command = command
        self._environment = environment
        self._ready = ready
        self._ending = False  # no Event: a signal's handler may not wait for a lock that the loop holds
        self._was_ready = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Keep the program running; returns its exit status if it never became ready, else 0.

        Raises:
            OSError: the program cannot be executed.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        pause = _FIRST_PAUSE
        while True:
            status, served = self._run_once()
            if self._ending:
                return 0
            if not self._was_ready:
                return status if status > 0 else 1
            pause = _FIRST_PAUSE if served else min(2 * pause, _LONGEST_PAUSE)
            logger.error(
                "%s ended with status %d; it starts again in %.0f s", self._command[0], status, pause
            )
            wait_until(lambda: self._ending, pause)
            if self._ending:
                return 0

    def _run_once(self) -> tuple[int, bool]:
        """The exit status of one run, and whether it took requests."""
        keeper = os.getpid()
        served = False
        with subprocess.Popen(
            self._command,
            env=dict(self._environment),
            preexec_fn=lambda: signal_at_parent_death(keeper, signal.SIGTERM),
        ) as process:
            self._process = process
            if self._ending:  # told so while it was started
                process.terminate()
            while process.poll() is None:
                if not served and not self._ending and self._ready():
                    served = self._was_ready = True
                    logger.info("%s takes requests", self._command[0])
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
        self._process = None
        _kill_rest_of_group()
        return process.returncode, served

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._ending = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()


def _kill_rest_of_group() -> None:
    """End what the program left behind: it would hold memory that the next run needs."""
    own = os.getpid()
    if os.getsid(0) != own:  # in the foreground of a shell, which may have other programs in the group
        return
    for process in processes():
        if process.group == own and process.pid != own:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
