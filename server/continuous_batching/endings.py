"""How an engine process or a rank of it ends, and why."""

from __future__ import annotations

from pydantic import ValidationError

from utils.validation import first_problem

REFUSED_EXIT = 3
"""Exit status where the model cannot be served: trying again would not help."""
RANK_LOST_EXIT = 4
"""Exit status of an engine that lost a rank: all of them are started again."""


def reason(error: Exception) -> str:
    """Why the model cannot be served, in one line; raises `error` where that is for its traceback to say."""
    from server.device.faults import out_of_memory

    text = str(error)
    if isinstance(error, ValidationError):  # of a path: the model was there when the server started
        text = first_problem(error)
    elif out_of_memory(error):
        text = f"the memory does not suffice for this model and configuration ({error})"
    elif isinstance(error, RuntimeError):
        raise error
    return " ".join(text.split())
