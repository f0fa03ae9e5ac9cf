"""The HTTP client with which the gateway talks to servers."""

from __future__ import annotations

import functools

import aiohttp
from multidict import istr

POOL_SECONDS = 30.0
"""How long an idle connection is kept; below the servers' own limit, so that they never close one
just as a request is sent on it."""
MAX_ANSWER_BYTES = 256 * 2**20
MAX_EVENT_BYTES = 2**20


class Request(aiohttp.ClientRequest):
    """A request with no headers but ours."""

    DEFAULT_HEADERS = dict[istr, str]()  # noqa: RUF012  # no ClassVar in the base class either


def open_session() -> aiohttp.ClientSession:
    """A session without limits of its own: the gateway bounds its requests and watches their time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=POOL_SECONDS, ttl_dns_cache=30),
        # bytes are passed on as they are
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        request_class=Request,
    )


async def read_whole(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of `response`, whether it says its length or not.

    Raises:
        aiohttp.ClientPayloadError: it has more than `limit` bytes.
    """
    content, parts = response.content, list[bytes]()
    size = 0
    announced = response.content_length or 0
    while max(size, announced) <= limit:
        part = await content.readany()
        parts.append(part)
        size += len(part)
        if content.at_eof():
            return b"".join(parts)
    raise aiohttp.ClientPayloadError(f"a body of more than {limit} bytes")


@functools.cache
def connect_timeout(seconds: float) -> aiohttp.ClientTimeout:
    """Bounds the making of a connection, and nothing else."""
    return aiohttp.ClientTimeout(total=None, sock_connect=seconds)
