"""Texts of errors, for logs and for other errors."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The message of `error` without line breaks, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
