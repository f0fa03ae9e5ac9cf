"""Hurts a server from within: Python loads this at its start where the directory is in ``PYTHONPATH``.

The file that ``FAULT_FILE`` names says what shall happen to whichever process next receives a message of a
kind: ``raise Add``, ``hang Add`` (asleep with the interpreter's lock held, as in a driver), ``loop Add``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.continuous_batching import messages

FAULT = Path(os.environ["FAULT_FILE"])


def hurt(kind: str) -> None:
    try:
        fault, wanted = FAULT.read_text().split()
    except FileNotFoundError:
        return
    if wanted != kind:
        return
    FAULT.unlink()
    if fault == "hang":
        ctypes.PyDLL(None).sleep(1000)
    while fault == "loop":
        pass
    raise RuntimeError(f"injected: {fault} at {kind}")


def hurting(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decoded(data: bytes) -> Any:
        message = decode(data)
        hurt(type(message).__name__)
        return message

    return decoded


messages.decode_to_engine = hurting(messages.decode_to_engine)
messages.decode_from_engine = hurting(messages.decode_from_engine)
