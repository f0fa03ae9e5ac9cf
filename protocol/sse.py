"""Server-sent events: how streams are framed, and the checkpoints hidden in them.

A stream is a sequence of events, each ended by an empty line; the last one is ``data: [DONE]``.
A stream that fails after its first byte ends with an ``error`` event instead.

When a gateway asks for it (`headers.STREAM_CHECKPOINT`), every event starts with a comment line
``: tokens INDEX ID,ID,…[ .]`` for each answer that it advances: the token ids whose text the
stream has dealt with once the event is out (all of them since the last event, text held back
included), and a dot where the answer is finished. SSE clients skip comments. From them the
gateway builds a `Resume`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"

_CHECKPOINT = re.compile(rb"^: tokens (\d+) ([\d,]*)( \.)?$", re.MULTILINE)


def event(data: bytes, *, name: str | None = None, comments: bytes = b"") -> bytes:
    """One event with `data` (a single line of JSON)."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return comments + head + b"data: " + data + b"\n\n"


def checkpoint(index: int, token_ids: Sequence[int], finished: bool) -> bytes:
    """The comment line that says how far answer `index` has come."""
    ids = ",".join(map(str, token_ids))
    return f": tokens {index} {ids}{' .' if finished else ''}\n".encode()


def read_checkpoints(data: bytes) -> Iterable[tuple[int, list[int], bool]]:
    """(index, new token ids, finished) of every checkpoint in whole events."""
    if b": tokens " not in data:
        return
    for match in _CHECKPOINT.finditer(data):
        ids = match.group(2)
        yield int(match.group(1)), [int(i) for i in ids.split(b",")] if ids else [], bool(match.group(3))
