"""Unused ports for processes that are started to be measured or tested.

They lie below Linux's ephemeral port range, and a process never hands one out twice, so that no outgoing
connection can take a port before the service binds it.
"""

from __future__ import annotations

import random

from utils.process import port_is_free

_PORTS = range(10_000, 32_768)
_HOST = "127.0.0.1"
_next = random.SystemRandom().choice(_PORTS)  # elsewhere in each process


def free_port() -> int:
    """An unused port of 127.0.0.1."""
    return neighbouring_ports(1)


def neighbouring_ports(count: int) -> int:
    """The first of `count` consecutive unused ports of 127.0.0.1."""
    global _next
    while True:
        first = _next if _next + count <= _PORTS.stop else _PORTS.start
        _next = first + count
        if all(port_is_free(_HOST, port) for port in range(first, first + count)):
            return first
