"""Where to put the sockets that connect processes on one host."""

from __future__ import annotations

import tempfile

_LONGEST = 103
"""Bytes of a socket's path that every system takes (Linux takes 107)."""
_NAME = 40
"""Bytes kept for the names below that directory."""


def socket_root() -> str:
    """The directory for temporary files, or /tmp where that path is too long for a socket."""
    root = tempfile.gettempdir()
    return root if len(root.encode()) + _NAME <= _LONGEST else "/tmp"
