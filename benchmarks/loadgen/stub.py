"""A server that answers at once, to find out what the load generator itself can do.

    .venv/bin/python -m benchmarks.loadgen.stub [PORT]        prints the port, answers until it is stopped

It takes any request for a completion: whole answers, or streams of `TOKENS` events. It reads no
more of HTTP than that takes and is no server for any other purpose.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

TOKENS = 8
USAGE = b'"usage":{"prompt_tokens":5,"completion_tokens":%d,"total_tokens":%d}' % (TOKENS, TOKENS + 5)
BODY = b'{"choices":[{"text":"x","index":0,"finish_reason":"length"}],' + USAGE + b"}"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
_EVENT = b'data: {"choices":[{"text":"x","index":0,"finish_reason":null}]}\n\n'
_LAST = b'data: {"choices":[],' + USAGE + b"}\n\ndata: [DONE]\n\n"
_STREAM_BODY = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in [*[_EVENT] * TOKENS, _LAST])
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    + _STREAM_BODY
    + b"0\r\n\r\n"
)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Stub(asyncio.Protocol):
    """Answers each request on a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._data, 0, end)
            size = end + 4 + (int(length.group(1)) if length else 0)
            if len(self._data) < size:
                return
            request, self._data = self._data[:size], self._data[size:]
            self._transport.write(STREAM if b'"stream":true' in request else WHOLE)


async def serve(port: int) -> None:
    """Serve on `port` (0: any) until cancelled; prints the port."""
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
