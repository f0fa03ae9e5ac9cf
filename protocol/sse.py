"""Server-sent events: how streams are framed, and the checkpoints hidden in them.

A stream is a sequence of events, each ended by an empty line; the last one is ``data: [DONE]``.
A stream that fails after its first byte ends with an ``error`` event instead.

When a gateway asks for it (`headers.STREAM_CHECKPOINT`), every event starts with a comment line
``: tokens INDEX ID,ID,…[ .]`` for each answer that it advances: the token ids whose text the
stream has dealt with once the event is out (all of them since the last event, text held back
included), and a dot where the answer is finished. SSE clients skip comments. From them the
gateway builds a `Resume`. With the first event of a prompt's answers comes a line ``: cached COUNT``, where
that many of its tokens came from the cache: clients are told so, and a peer that goes on tells them the same.

Events that belong together, because one token caused all of them, are handed on together or not at
all: each but the last starts with ``: more``, and the last has the checkpoint. Where a stream does not
end with ``[DONE]``, its last event starts with ``: end``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

DONE = b"data: [DONE]\n\n"
MEDIA_TYPE = "text/event-stream"
HEADERS = {
    "content-type": f"{MEDIA_TYPE}; charset=utf-8",  # some clients take text without a charset for Latin-1
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # tells a reverse proxy not to hold events back
}
"""Those of a stream's answer."""

MORE = b": more\n"
"""Before an event that counts only with the one that follows it."""
END = b": end\n"
"""Before the last event of a stream without ``[DONE]``."""

_MARK = b": tokens "
_CACHED = b": cached "
_COUNT = re.compile(rb": cached (\d{1,9})")
_CHECKPOINT = re.compile(rb": tokens (\d{1,9}) ((?:\d{1,10}(?:,\d{1,10})*)?)( \.)?")
_TOKEN_IDS = 2**31


def event(data: bytes, *, name: str | None = None, comments: bytes = b"") -> bytes:
    """One event with `data` (a single line of JSON)."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return comments + head + b"data: " + data + b"\n\n"


Event = tuple[str | None, bytes]
"""Name, if it has one, and data of an event."""


def group(events: Sequence[Event], *, comments: bytes | None = None) -> bytes:
    """Events that belong together.

    Args:
        events: at least one.
        comments: those of the last event, for a gateway; None: they are not collected.
    """
    if len(events) == 1:
        name, data = events[0]
        return event(data, name=name, comments=comments or b"")
    more = b"" if comments is None else MORE
    *first, (name, data) = events
    before = b"".join([event(data, name=name, comments=more) for name, data in first])
    return before + event(data, name=name, comments=comments or b"")


def checkpoint(index: int, token_ids: Sequence[int], finished: bool) -> bytes:
    """The comment line that says how far answer `index` has come."""
    ids = ",".join(map(str, token_ids))
    return f": tokens {index} {ids}{' .' if finished else ''}\n".encode()


def cached(count: int) -> bytes:
    """The comment line that says that `count` more tokens of prompts came from the cache."""
    return b": cached %d\n" % count


def read_cached(data: bytes) -> int:
    """How many tokens of prompts came from the cache, by the comments in whole events.

    Raises:
        ValueError: a comment looks like such a line and is none.
    """
    total = 0
    for line in data.splitlines() if _CACHED in data else ():
        if line.startswith(_CACHED):
            match = _COUNT.fullmatch(line)
            if match is None:
                raise ValueError(f"no count of cached tokens: {line[:80]!r}")
            total += int(match.group(1))
    return total


def read_checkpoints(data: bytes) -> Iterable[tuple[int, list[int], bool]]:
    """(index, new token ids, finished) of every checkpoint in whole events.

    Raises:
        ValueError: a comment looks like a checkpoint and is none.
    """
    if _MARK not in data:
        return
    for line in data.splitlines():
        if not line.startswith(_MARK):
            continue
        match = _CHECKPOINT.fullmatch(line)
        if match is None:
            raise ValueError(f"no checkpoint: {line[:80]!r}")
        ids = [int(i) for i in match.group(2).split(b",")] if match.group(2) else []
        if any(i >= _TOKEN_IDS for i in ids):
            raise ValueError(f"no token ids: {line[:80]!r}")
        yield int(match.group(1)), ids, bool(match.group(3))
