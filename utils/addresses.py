"""URLs of services: whether one can be called, and which to call where one listens everywhere."""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from yarl import URL

from protocol import routes

_HOST = re.compile(r"[\w.:%-]+")  # a name, or an address of either kind
_SECRET = re.compile(r"(?P<scheme>[a-z][a-z\d+.-]*://)?(?P<login>.*@)?(?P<rest>[^?#]*).*", re.DOTALL | re.I)
_ROUTES = tuple(path for name, path in vars(routes).items() if name.isupper())
EVERY_INTERFACE = ("", "0.0.0.0", "::")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def redacted(url: str) -> str:
    """`url`, or what was meant to be one, as it may be shown: without user name, password and query."""
    return _SECRET.sub(r"\g<scheme>\g<rest>", url, count=1)


class Address(str):
    """A URL as it is shown and compared; what is sent for its user name and password is kept apart."""

    authorization: str | None
    """The ``Authorization`` header to send there, where the URL was written with a user name."""

    def __new__(cls, shown: str, authorization: str | None = None) -> Address:
        self = super().__new__(cls, shown)
        self.authorization = authorization
        return self

    @classmethod
    def of(cls, url: URL) -> Address:
        """The address that `url` is written as."""
        authorization = None
        if url.user is not None or url.password is not None:
            login = f"{url.user or ''}:{url.password or ''}".encode()
            authorization = f"Basic {base64.b64encode(login).decode()}"
        return cls(redacted(str(url).rstrip("/")), authorization)


def check_endpoint(value: str) -> Address:
    """`value`, the base URL of an API, without a slash at its end; ValueError where it is none."""
    shown = repr(redacted(value))
    try:
        url = URL(value)
    except ValueError:  # its message may quote any part of the URL
        raise ValueError(f"{shown} is not a URL such as http://127.0.0.1:8001") from None
    if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.host or "") or not url.port:
        raise ValueError(f"{shown} is not a URL such as http://127.0.0.1:8001")
    if extra := re.search(r"[?#\s]", value) or re.search("@", url.path):
        raise ValueError(f"{shown} is not a URL such as http://127.0.0.1:8001: it holds {extra[0]!r}")
    if url.path.rstrip("/").endswith(_ROUTES):
        raise ValueError(f"{shown} is the URL of a route: give what comes before it")
    return Address.of(url)


def check_service_url(value: str) -> Address:
    """`value`, the URL of one of our services, as `check_endpoint` has it."""
    checked = check_endpoint(value)
    if checked.endswith("/v1"):
        raise ValueError("a URL such as http://127.0.0.1:8001, without /v1")
    return checked


def check_open_url(value: str) -> Address:
    """`value` as `check_service_url` has it, without a user name: it stands on command lines."""
    checked = check_service_url(value)
    if checked.authorization is not None:
        raise ValueError(f"{str(checked)!r} must hold no user name or password: command lines show them")
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
    except OSError:  # no such host, no route: there is no server to reach anyway
        return reachable(host)


def parse_ip(text: str) -> IpAddress | None:
    """`text` as an address, an IPv4 address within IPv6 as the former; None where it is none."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def bracketed(host: str) -> str:
    """`host` as a URL has it."""
    return f"[{host}]" if ":" in host else host
