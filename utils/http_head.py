"""Which heads of requests are refused, beyond what the parser refuses itself.

llhttp, strict by default, refuses with 400 whatever two parsers may read in two ways: two lengths,
a length beside chunks, folded lines, bare LF and CR, space before a colon, control characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from protocol.errors import (
    INVALID_REQUEST,
    ApiError,
    bad_request,
    head_too_large,
    not_found,
    not_implemented,
)
from protocol.headers import HOPS, REQUEST_ID, STREAM_CHECKPOINT
from utils.http_limits import HEAD_BYTES, HttpLimits

RawHeaders = list[tuple[bytes, bytes]]

SINGLE = frozenset(
    [
        *(b"authorization", b"content-encoding", b"content-length", b"content-type", b"expect", b"host"),
        *(b"origin", b"transfer-encoding", b"x-api-key"),
        *(name.encode() for name in (REQUEST_ID, HOPS, STREAM_CHECKPOINT)),
    ]
)
"""Fields that must not come twice: one reader takes the first, another the last."""
VERSIONS = ("1.0", "1.1")


def check_head(
    version: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    limits: HttpLimits,
    most: int = HEAD_BYTES + 1,
) -> None:
    """Check a whole head.

    Args:
        most: bytes that it can have at most, as it came.

    Raises:
        ApiError: 400, 404, 431, 501 or 505.
    """
    if version not in VERSIONS:
        raise ApiError(505, f"HTTP/{version} is not spoken here, HTTP/1.1 is", type=INVALID_REQUEST)
    path = target.partition(b"?")[0]
    if b"%" in path and not unquote(path).isprintable():
        # a router's pattern may end before a line break: one route would have two paths
        raise not_found("no path here has control characters")
    if len(headers) > limits.limit_request_fields:
        raise head_too_large(f"more than {limits.limit_request_fields} header fields")
    longest = limits.limit_request_field_size
    if most > min(longest, HEAD_BYTES):  # it rarely is
        size = len(target) + sum([len(name) + len(value) for name, value in headers])
        if size > HEAD_BYTES:
            raise head_too_large(f"a head of more than {HEAD_BYTES} bytes")
        if any(len(name) + len(value) > longest for name, value in headers):
            raise head_too_large(f"a header field of more than {longest} bytes")
    singles = [field for field in headers if field[0] in SINGLE]
    single = dict(singles)
    if len(single) < len(singles):
        twice = next(name for name in single if [field[0] for field in singles].count(name) > 1)
        raise bad_request(f"the header field {twice.decode()} came twice")
    if version == "1.1" and b"host" not in single:
        raise bad_request("the header field Host is missing")
    coding = single.get(b"transfer-encoding")
    if coding is not None:
        if version == "1.0":
            raise bad_request("HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise not_implemented("of all transfer codings only chunked is understood")


def take_host_from_target(target: bytes, headers: RawHeaders) -> None:
    """Let the authority of an absolute target be the Host, whatever the header says (RFC 9112, 3.2.2)."""
    if target.startswith((b"/", b"*")):
        return
    host = urlsplit(target).netloc.rpartition(b"@")[2]
    headers[:] = [(name, host if name == b"host" else value) for name, value in headers]
