"""The pipe by which an engine process is told what it is to serve: its standard input.

The parts, in this order, each with its length before it: the configuration as JSON, a pickled
`PlainConfig` or None, and a pickled `ModelTexts`.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import IO

_LENGTH_BYTES = 8


def send_part(pipe: IO[bytes], part: bytes) -> None:
    """Write one part.

    Raises:
        OSError, ValueError: the reader is gone, or the pipe is closed.
    """
    pipe.write(len(part).to_bytes(_LENGTH_BYTES))
    pipe.write(part)
    pipe.flush()


def received_parts(pipe: IO[bytes]) -> SimpleQueue[bytes]:
    """The parts as they come, read by a thread.

    It ends this process at once when the other end of the pipe is closed, on any system: its holder is gone.
    """
    parts: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        while length := pipe.read(_LENGTH_BYTES):
            parts.put(pipe.read(int.from_bytes(length)))
        os._exit(0)

    threading.Thread(target=read, name="start-pipe", daemon=True).start()
    return parts
