"""How answers to clients of HTTP/1.0 end: those know no chunks (RFC 9112, 6.1), which uvicorn sends them."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def frame_as_asked(cycle: RequestResponseCycle) -> None:
    """Where the client is of HTTP/1.0, let an answer without a length end with the connection."""
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
