"""The pipe that carries the startup data of an engine process or rank: its standard input.

Each part is preceded by its length. An engine gets three: the configuration as JSON, a pickled
`PlainConfig` or None, and a pickled `ModelTexts`. A rank beside the first gets the configuration alone.
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


def receive_parts(descriptor: int) -> SimpleQueue[bytes]:
    """Read parts on a thread and queue them as they arrive.

    When the other end of the pipe is closed, its process is gone, and the thread ends this one at once.
    """
    parts: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        while True:
            length = int.from_bytes(_read_exactly(descriptor, _LENGTH_BYTES))
            parts.put(_read_exactly(descriptor, length))

    threading.Thread(target=read, name="start-pipe", daemon=True).start()
    return parts


def _read_exactly(descriptor: int, length: int) -> bytes:
    """So many bytes, without the lock of `sys.stdin`: Python aborts if a thread holds it at exit."""
    data = bytearray()
    while len(data) < length:
        read = os.read(descriptor, length - len(data))
        if not read:
            os._exit(0)
        data += read
    return bytes(data)
