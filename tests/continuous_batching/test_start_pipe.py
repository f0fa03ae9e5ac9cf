"""Startup data on its way to an engine process."""

from __future__ import annotations

import subprocess
import sys

from server.continuous_batching.start_pipe import send_part
from utils.commands import ROOT

_READER = """
import sys, time
from server.continuous_batching.start_pipe import receive_parts

parts = receive_parts(sys.stdin.fileno())
print(len(parts.get()), parts.get(), flush=True)
if sys.argv[1] == "stay":
    time.sleep(60)
    sys.exit(4)
sys.exit(3)
"""


def reader(then: str) -> subprocess.Popen[bytes]:
    """A process that prints the length of the first part, and the second, sent to it."""
    command = [sys.executable, "-c", _READER, then]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    send_part(process.stdin, bytes(1_000_000))  # more than a pipe holds
    send_part(process.stdin, b"end")
    assert process.stdout.readline() == b"1000000 b'end'\n"
    return process


def test_a_process_can_exit_while_the_pipe_is_open() -> None:
    process = reader("exit")
    assert process.wait(30) == 3
    assert process.communicate()[1] == b""


def test_a_process_ends_when_the_pipe_is_closed() -> None:
    process = reader("stay")
    process.communicate(timeout=30)
    assert process.returncode == 0
