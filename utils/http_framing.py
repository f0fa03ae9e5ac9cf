"""How answers are framed: in chunks that the application may write itself, or, for clients of HTTP/1.0, which
know no chunks (RFC 9112, 6.1), by the end of the connection. uvicorn sends chunks to all.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from utils.http_pieces import PIECES, BodyPieces


def frame_as_asked(cycle: RequestResponseCycle) -> None:
    """Offer `BodyPieces`; where the client is of HTTP/1.0, let an answer without a length end with the
    connection."""
    cycle.scope["extensions"] = {PIECES: BodyPieces(cycle)}  # type: ignore[dict-item]
    if cycle.scope["http_version"] != "1.0":
        return
    send, unframed = cycle.send, False

    async def send_unframed(message: Any) -> None:
        nonlocal unframed
        if message["type"] == "http.response.start":
            unframed = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if unframed:
                cycle.chunked_encoding, cycle.keep_alive = False, False
        elif unframed:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = send_unframed  # type: ignore[method-assign]
