"""What is said about a model: why it cannot be served, or why it is run as it is."""

from __future__ import annotations


class BrokenModelError(Exception):
    """A model that ran and does not run any more, whatever it is asked; the message is one line."""


def with_reason(name: str, reason: str) -> dict[str, str]:
    """An entry of the capabilities in ``/status``."""
    return {"name": name, "reason": reason}
