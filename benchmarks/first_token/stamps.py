"""When a request reached each stage, noted by the processes that it passes through."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DIRECTORY = "FIRST_TOKEN_DIRECTORY"
"""The environment variable that names where the files of stamps are."""
PLAN_AT_ONCE = "FIRST_TOKEN_PLAN_AT_ONCE"
"""The one that lets steps be planned as early as can be, to see what waiting gives."""
DEVICE = "device"
"""Stands for a request where the device is timed."""
PREFIX = "probe-"
"""What the ids of the requests that are watched begin with."""

STAGES = {
    "arrived": "sent by the client, head read",
    "parsed": "body read, validated, tokenised",
    "submitted": "job made, message sent to the engine",
    "heard": "message read by the engine's loop",
    "planned": "waited for the loop, step planned",
    "built": "arrays of the step made",
    "prepared": "slot assigned, tokens of the prompt sent",
    "sent": "tensors of the step sent",
    "passed": "its forward pass launched",
    "launched": "choice of tokens launched",
    "read": "computed, tokens read back",
    "reported": "tokens collected, report sent",
    "told": "report read by the HTTP process",
    "written": "made into text, events written",
    "seen": "read by the client",
}
"""Each stage, and what lies between the one before and it. The clock is the system's monotonic one."""


class Stamps:
    """Appends stamps to a file of this process.

    Args:
        directory: where the file is made.
    """

    def __init__(self, directory: str) -> None:
        self._file = os.open(f"{directory}/{os.getpid()}.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._seen: set[tuple[str, str]] = set()

    def note(self, request_id: str, stage: str) -> None:
        """`request_id` (of a request or its job) has reached `stage` now; only the first time counts."""
        name = request_id.partition("#")[0]
        if name.startswith(PREFIX) and (name, stage) not in self._seen:
            self._seen.add((name, stage))
            os.write(self._file, json.dumps([name, stage, time.monotonic()]).encode() + b"\n")

    def note_device(self, tokens: int, seconds: float) -> None:
        """The device took `seconds` for a step of `tokens` tokens of prompts, from its first copy on."""
        os.write(self._file, json.dumps([DEVICE, str(tokens), seconds]).encode() + b"\n")


def own_stamps() -> Stamps:
    """Those of this process, in the directory that the environment names."""
    return Stamps(os.environ[DIRECTORY])


def read_stamps(directory: Path) -> dict[str, dict[str, float]]:
    """By request and stage, what all processes noted."""
    found: dict[str, dict[str, float]] = {}
    for path in directory.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            name, stage, at = json.loads(line)
            if name != DEVICE:
                found.setdefault(name, {})[stage] = at
    return found


def read_device(directory: Path) -> list[tuple[int, float]]:
    """(tokens of prompts, milliseconds that the device took) of the steps that were timed."""
    lines = [json.loads(line) for path in directory.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((int(tokens), 1e3 * seconds) for name, tokens, seconds in lines if name == DEVICE)


def before(owner: Any, name: str, note: Callable[..., None]) -> None:
    """Let `note` see the arguments of each call of the method `name` of the class `owner`."""
    method = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        note(*args)
        return method(*args, **kwargs)

    setattr(owner, name, noted)


def after(owner: Any, name: str, note: Callable[..., None]) -> None:
    """The same once the call has returned."""
    method = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        note(*args)
        return result

    setattr(owner, name, noted)
