"""How a checkpoint's authors want its tokens drawn, where a request does not say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json

FILE = "generation_config.json"
_OF_DRAWING = ("temperature", "top_k", "top_p", "min_p")
NAMES = (*_OF_DRAWING, "repetition_penalty")
"""What is taken from the file, by the names that OpenAI's routes have for it."""


def sampling_defaults(directory: str | Path, wanted: Literal["auto", "none"]) -> dict[str, float]:
    """Those of the checkpoint in `directory`; none where it is a file.

    What only counts for drawn tokens is left out where the file says that none are drawn.

    Args:
        directory: a checkpoint on this machine.
        wanted: the configuration's ``generation_config``; none: the file is not read.

    Raises:
        ModelError: the file cannot be read, or has an option that is not a number.
    """
    path = Path(directory) / FILE
    if wanted == "none" or not path.is_file():
        return {}
    stored = read_json(path)
    names = [name for name in NAMES if stored.get("do_sample") is not False or name not in _OF_DRAWING]
    found = {name: stored[name] for name in names if stored.get(name) is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ModelError(f"{path}: {name} is {value!r}, which is not a number")
    return found
