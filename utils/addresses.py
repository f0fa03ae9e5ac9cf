"""URLs of services: whether one can be called, and which to call where one listens everywhere."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

from yarl import URL

from protocol import routes

_HOST = re.compile(r"[\w.:%-]+")  # a name, or an address of either kind
_ROUTES = tuple(path for name, path in vars(routes).items() if name.isupper())
EVERY_INTERFACE = ("", "0.0.0.0", "::")


def check_endpoint(value: str) -> str:
    """`value`, the base URL of an API, without a slash at its end; ValueError where it is none."""
    try:
        url = URL(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a URL: {error}") from None
    shown = repr(str(url.with_user(None)) if url.user else value)  # what a URL has of a password is secret
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.host or "") or not url.port:
        raise ValueError(f"{shown} is not a URL such as http://127.0.0.1:8001")
    if extra := re.search(r"[?#\s]", value):
        raise ValueError(f"{shown} is not a URL such as http://127.0.0.1:8001: it holds {extra[0]!r}")
    if url.path.rstrip("/").endswith(_ROUTES):
        raise ValueError(f"{shown} is the URL of a route: give what comes before it")
    return str(url).rstrip("/")


def check_service_url(value: str) -> str:
    """`value`, the URL of one of our services, as `check_endpoint` has it."""
    checked = check_endpoint(value)
    if checked.endswith("/v1"):
        raise ValueError("a URL such as http://127.0.0.1:8001, without /v1")
    return checked


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
