"""Which servers may join by an event: where they may be. A probe is sent to what joins."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator
from yarl import URL

from protocol.errors import ApiError, forbidden, unprocessable
from utils.addresses import IpAddress, check_open_url, parse_ip

_NAME_PATTERN = re.compile(r"(\*\.)?[a-z][\w-]*(\.[\w-]+)*", re.ASCII)
_METADATA = {ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")}
"""Where clouds tell machines their secrets, beside the link-local 169.254.169.254."""


def _check_joining_host(value: str) -> str:
    value = value.lower()
    if _NAME_PATTERN.fullmatch(value) is None:
        try:
            ipaddress.ip_network(value)
        except ValueError:
            accepted = "a host name, *.DOMAIN, an address, or a network such as 10.0.0.0/8"
            raise ValueError(f"{value!r} is not {accepted}") from None
    return value


JoiningHost = Annotated[str, AfterValidator(_check_joining_host)]


def joining_url(value: str, caller: str, allowed: Sequence[str]) -> str:
    """The URL of a server that asks to join, in the form in which the configuration has it.

    Args:
        value: the URL that it gives.
        caller: the address from which it asks.
        allowed: configured names, addresses and networks; without any its URL holds an address of its
            own, which is `caller` unless both are on this machine.

    Raises:
        ApiError: 422 where that is not scheme, host and port alone; 403 where it may not be there.
    """
    try:
        checked = check_open_url(value)
    except ValueError as error:
        raise unprocessable(f"url: {error}", param="url") from None
    url = URL(checked)
    if url.path != "/":
        raise unprocessable("url: a server that joins has no path in its URL", param="url")
    host = (url.host or "").lower().removesuffix(".")
    ip = parse_ip("127.0.0.1" if host == "localhost" else host)
    if ip is not None and _never(ip):
        raise forbidden(f"url: no server can be at {host}")
    if not (_listed(host, ip, allowed) if allowed else _is_caller(ip, parse_ip(caller))):
        raise _elsewhere(host, caller, allowed)
    return checked


def _elsewhere(host: str, caller: str, allowed: Sequence[str]) -> ApiError:
    where = "in joining_hosts" if allowed else f"the address that this event came from ({caller})"
    hint = "" if allowed else "; list it under 'joining_hosts' in the gateway's configuration"
    return forbidden(f"url: {host} is not {where}{hint}")


def _listed(host: str, ip: IpAddress | None, allowed: Sequence[str]) -> bool:
    if ip is None:
        return any(fnmatch.fnmatchcase(host, pattern) for pattern in allowed)
    names = [pattern for pattern in allowed if _NAME_PATTERN.fullmatch(pattern)]
    networks = [ipaddress.ip_network(pattern) for pattern in allowed if pattern not in names]
    return host in names or any(ip in network for network in networks)


def _is_caller(ip: IpAddress | None, caller: IpAddress | None) -> bool:
    if ip is None or caller is None:
        return False
    return ip == caller or (_is_here(ip) and _is_here(caller))


def _is_here(ip: IpAddress) -> bool:
    """Whether `ip` is an address of this machine: the system refuses to bind any other."""
    with socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True


def _never(ip: IpAddress) -> bool:
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA
