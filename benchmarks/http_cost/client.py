"""Reads many streams for next to nothing: raw sockets, and events are counted, not parsed."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

EVENT = b"data: {"


def request(path: str, body: bytes) -> bytes:
    """The bytes of a POST, the only one of its connection."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


@dataclass(slots=True)
class Watched:
    """What the middle of a run came to: from when all streams had begun until the first ended."""

    events: int
    seconds: float
    cpu_seconds: np.ndarray
    """As `read_streams` was given them."""


def read_streams(port: int, requests: list[bytes], cpu: Callable[[], np.ndarray]) -> Watched:
    """Send `requests`, a connection each, and read all answers.

    Args:
        cpu: seconds that the server has computed so far, of several kinds.

    Raises:
        RuntimeError: a stream ended before all others had begun, or there was no event.
    """
    selector = selectors.DefaultSelector()
    for index, content in enumerate(requests):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(content)
        selector.register(connection, selectors.EVENT_READ, index)
    begun: set[int] = set()
    events, start, watched = 0, (0, 0.0, cpu()), None
    while selector.get_map():
        for key, _ in selector.select():
            data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
            if not data:
                if watched is None:
                    if len(begun) < len(requests):
                        raise RuntimeError("a stream ended before all others had begun")
                    watched = (events, time.perf_counter(), cpu())
                selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
                continue
            events += data.count(EVENT)
            if key.data not in begun:
                begun.add(key.data)
                if len(begun) == len(requests):
                    start = (events, time.perf_counter(), cpu())
    if watched is None or watched[0] == start[0]:
        raise RuntimeError("no stream was read")
    return Watched(watched[0] - start[0], watched[1] - start[1], watched[2] - start[2])


def exchange(port: int, requests: list[bytes]) -> tuple[float, list[bytes]]:
    """Send `requests`, each on a connection that is open already, and read all answers.

    Returns:
        Seconds from the first byte sent to the last one read, and the answers with their heads.

    Raises:
        RuntimeError: one is no success.
    """
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in requests]
    selector = selectors.DefaultSelector()
    parts: list[list[bytes]] = [[] for _ in requests]
    begin = time.perf_counter()
    for index, (connection, content) in enumerate(zip(connections, requests, strict=True)):
        connection.sendall(content)
        selector.register(connection, selectors.EVENT_READ, index)
    while selector.get_map():
        for key, _ in selector.select():
            data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
            if data:
                parts[key.data].append(data)
            else:
                selector.unregister(key.fileobj)
    seconds = time.perf_counter() - begin
    for connection in connections:
        connection.close()
    answers = [b"".join(pieces) for pieces in parts]
    for answer in answers:
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"the server answered: {answer[:400]!r}")
    return seconds, answers
