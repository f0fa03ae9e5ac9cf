"""What is said about a model: why it cannot be served, or why it is run as it is."""

from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be served as configured; the message is one line."""


def told(name: str, reason: str) -> dict[str, str]:
    """An entry of the capabilities in ``/status``."""
    return {"name": name, "reason": reason}


def one_line(error: BaseException) -> str:
    """The message of `error` without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
