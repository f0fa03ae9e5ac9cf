"""Under which address a service can be called, where it listens on every interface."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

EVERY_INTERFACE = ("", "0.0.0.0", "::")


def reachable(host: str) -> str:
    """The host part of a URL by which this machine reaches a service that listens on `host`."""
    return bracketed("127.0.0.1" if host in EVERY_INTERFACE else host)


def reachable_from(url: str, host: str) -> str:
    """The host part of a URL by which the service at `url` reaches one that listens on `host` here.

    On every interface that is the address from which this machine would call `url`.
    """
    if host not in EVERY_INTERFACE:
        return bracketed(host)
    target = urlsplit(url)
    try:
        family, _, _, _, address = socket.getaddrinfo(target.hostname, target.port or 80)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing, but chooses a route
            return bracketed(str(probe.getsockname()[0]))
    except OSError:  # no such host, no route: nobody will be told anyway
        return reachable(host)


def bracketed(host: str) -> str:
    """`host` as a URL has it."""
    return f"[{host}]" if ":" in host else host
