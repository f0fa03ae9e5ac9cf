"""Keeps pages of other sites away from a service that answers on this machine.

A browser sends whatever a page asks it to send, also to 127.0.0.1. What it adds tells such a request
from others: `Host` names the site that the page believes to talk to, `Origin` and `Sec-Fetch-*` say
where the page is from. Clients that are no browsers send neither of the latter and are not hindered.

Three checks, each of which another attack passes:

- `Host`: a name of the attacker that resolves to 127.0.0.1 (DNS rebinding);
- `Origin` and `Sec-Fetch-Site`: a request to another site, by the algorithm of Go's CrossOriginProtection;
- `Content-Type`: a form, which a browser sends to any site without asking it first.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from protocol.errors import bad_request, forbidden, unsupported_media_type
from utils.addresses import parse_ip
from utils.config import ConfigModel

LOOKED_AT = frozenset(
    [
        *(b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"),
        *(b"content-type", b"content-length", b"transfer-encoding"),
    ]
)
_HOST = re.compile(r"(?P<name>\[[\da-f:.]+\]|[^\s:/@\[\]]+)(:\d*)?", re.ASCII | re.IGNORECASE)
_HOST_PATTERN = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*", re.ASCII)
_ORIGIN_PATTERN = re.compile(r"\*|[a-z][a-z\d+.-]*://(\[[\da-f:.]+\]|[\w.-]+)(:\d+)?", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_JSON = b"application/json"
_UNSAID = (b"", b"application/x-www-form-urlencoded", b"application/octet-stream")
"""Types that clients send by default; the second is that of ``curl -d``."""


def _check_host_pattern(value: str) -> str:
    if _HOST_PATTERN.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a host name such as api.example.com or *.example.com")
    return value.lower()


def _check_origin(value: str) -> str:
    if _ORIGIN_PATTERN.fullmatch(value.lower()) is None:
        raise ValueError(f"{value!r} is not an origin such as https://app.example.com")
    return value.lower()


HostNames = Annotated[
    tuple[Annotated[str, AfterValidator(_check_host_pattern)], ...],
    Field(description="host names, or *.DOMAIN, under which clients call; needed behind a reverse proxy"),
]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_check_origin)], ...],
    Field(description="origins, or *, of web pages of other sites that may call"),
]


class SiteConfig(ConfigModel):
    """Keys in the configuration of every service."""

    allowed_hosts: HostNames = ()
    allowed_origins: Origins = ()


def browser_headers(scope: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The headers of a request that the checks look at.

    Raises:
        ApiError: 400, one of them is there twice.
    """
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in LOOKED_AT:
            if name in found:
                raise bad_request(f"the request has more than one {name.decode()} header")
            found[name] = value
    return found


def check_host(
    scope: Mapping[str, Any], headers: dict[bytes, bytes], allowed: Sequence[str], own: str = ""
) -> None:
    """Check the name under which the service was called.

    Checked where the connection came over the loopback interface or names are configured. An address
    or a name of this machine always passes: a page of another site cannot come from there.

    Args:
        scope: the ASGI scope of the request.
        headers: its `browser_headers`.
        allowed: names that are configured.
        own: the name or address that the service was set to listen on.

    Raises:
        ApiError: 403 where it is not allowed, 400 where it cannot be a host.
    """
    host = headers.get(b"host")
    if host is None:
        return  # no browser's
    if not (allowed or _is_loopback(_local_address(scope))):
        return
    if not _host_allowed(host, (*allowed, own.lower())):
        shown = host.decode("latin-1")
        message = (
            f"this service was called as {shown!r}, which is not a name of this machine: "
            "list the name under 'allowed_hosts' in the configuration of the service"
        )
        raise forbidden(message, code="host_not_allowed")


@functools.lru_cache(maxsize=1024)
def _host_allowed(host: bytes, allowed: tuple[str, ...]) -> bool:
    match = _HOST.fullmatch(host.decode("latin-1"))
    if match is None:
        raise bad_request("Host is not a host name with or without a port")
    name = match["name"].strip("[]").lower().removesuffix(".")
    if parse_ip(name) is not None or name == "localhost" or name.endswith(".localhost"):
        return True
    if name == socket.gethostname().lower():
        return True
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
        for pattern in allowed
    )


def check_origin(method: str, headers: dict[bytes, bytes], allowed: Sequence[str]) -> None:
    """Check where the page is from that made a browser send the request.

    Raises:
        ApiError: 403 where it is of another origin than the service and those `allowed`.
    """
    origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if origin is not None and ("*" in allowed or origin.decode("latin-1").lower() in allowed):
        return
    if site is not None:
        if site in (b"same-origin", b"none") or _is_link(method, headers):
            return
    elif origin is None or _authority(origin) == headers.get(b"host", b"").lower().decode("latin-1"):
        return
    page = "a page of another site" if origin is None else f"a page of {origin.decode('latin-1')!r}"
    message = (
        f"{page} may not call this service: list its origin under 'allowed_origins' in the "
        "configuration of the service"
    )
    raise forbidden(message, code="origin_not_allowed")


def _is_link(method: str, headers: dict[bytes, bytes]) -> bool:
    """Whether the user went to the service from elsewhere, in a tab, not in a frame of a page."""
    return (
        method == "GET"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def _authority(origin: bytes) -> str:
    """Host and port of `origin` as `Host` has them, the default port left out."""
    try:
        parts = urlsplit(origin.decode("latin-1").lower())
    except ValueError:
        return "?"
    return parts.netloc.removesuffix(_DEFAULT_PORTS.get(parts.scheme, "")) or "?"


def check_content_type(headers: dict[bytes, bytes]) -> None:
    """Check that a body is said to be JSON, or that no browser sends it and nothing is said.

    Raises:
        ApiError: 415.
    """
    if b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0":
        return  # there is none
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    by_browser = b"origin" in headers or b"sec-fetch-site" in headers
    if kind == _JSON or (kind in _UNSAID and not by_browser):
        return
    found = repr(kind.decode("latin-1")) if kind else "none"
    raise unsupported_media_type(f"send the body as 'Content-Type: application/json' (found {found})")


def _local_address(scope: Mapping[str, Any]) -> str:
    """The address of this machine at which the connection came in; empty where it has none."""
    server: Any = scope.get("server")
    return str(server[0]) if server else ""


@functools.lru_cache(maxsize=256)
def _is_loopback(address: str) -> bool:
    ip = parse_ip(address)
    return ip is not None and ip.is_loopback
