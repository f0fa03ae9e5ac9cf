"""Why a model cannot be served."""

from __future__ import annotations


class ModelError(Exception):
    """A model that cannot be served as configured; the message is one line for the operator."""


def one_line(error: BaseException) -> str:
    """The message of `error` without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
