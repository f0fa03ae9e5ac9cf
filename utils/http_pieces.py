"""Pieces of a body that go straight to the connection.

Every middleware wraps ASGI's `send`, and each piece of a stream passes through all of these wraps, which care
for its head and its end alone. A stream has a piece for each token, and the wraps cost more than the write.
"""

from __future__ import annotations

import weakref

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

PIECES = "inference_stack.pieces"
"""The extension of an ASGI scope that holds `BodyPieces`."""


class BodyPieces:
    """Writes pieces of one response between its head and its end, both of which go through `send`.

    Args:
        cycle: the request and its response.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        # its scope holds this object: only the garbage collector would free the two
        self._cycle = weakref.ref(cycle)

    def write(self, piece: bytes) -> bool:
        """Write a piece, which is not empty, or drop it where the client is gone.

        Returns:
            False where it must go through `send`: there is no head yet, the response is not chunked, or the
            client reads slowly, so that `send` has to wait for it.
        """
        cycle = self._cycle()
        if cycle is None or cycle.disconnected:
            return True
        if not cycle.chunked_encoding or not cycle.response_started or cycle.flow.write_paused:
            return False
        cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True
