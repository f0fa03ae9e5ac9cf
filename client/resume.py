"""How far a stream has come, so that another server can go on where one was cut.

The servers hide checkpoints in the stream (`protocol.sse`): which token ids each event stands for.
The journal takes them out of what the client gets and keeps them unparsed, since they are needed
only if the stream is cut.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from protocol.completion import Resume, ResumedChoice
from protocol.sse import DONE, read_checkpoints

_MARK = b": tokens "
_LATER_MARK = b"\n" + _MARK
_EVENT = b"data: {"
_END = b"\n\n"
_CREATED = re.compile(rb'"created": ?(\d+)')
_ERROR_EVENT = b"event: error\n"


class Journal:
    """What the client has been sent of one stream.

    Args:
        keep_checkpoints: leave them in the stream; the client is a gateway that wants them.
    """

    __slots__ = ("_checkpoints", "_created", "_keep", "_tail", "done", "error", "pieces")

    def __init__(self, *, keep_checkpoints: bool = False) -> None:
        self._keep = keep_checkpoints
        self._tail = b""
        self._checkpoints: list[bytes] = []
        self._created: int | None = None
        self.pieces = 0
        """How often there were events to send to the client."""
        self.done = False
        """Whether the stream has come to its end."""
        self.error: bytes | None = None
        """The error event with which the server ended the stream; it is not passed on."""

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Take what came from the server.

        Returns:
            Whole events for the client, possibly none, and how many tokens they stand for.
        """
        if self._tail:
            data, self._tail = self._tail + data, b""
        if self.pieces and data.find(_END) == len(data) - 2:  # one event, as nearly always
            if data.startswith(_EVENT):
                self.pieces += 1
                return data, 0
            begin = data.find(b"\n") + 1
            if data.startswith(_MARK) and data.startswith(_EVENT, begin):
                self.pieces += 1
                self._checkpoints.append(data[:begin])
                return data if self._keep else data[begin:], data.count(b",", 0, begin) + 1
        return self._feed_any(data)

    def _feed_any(self, data: bytes) -> tuple[bytes, int]:
        end = data.rfind(_END) + 2
        if end == 1:
            end = 0
        events, self._tail = data[:end], data[end:]
        if _ERROR_EVENT in events:
            events = self._cut_error(events)
        if not events:
            return b"", 0
        if not self.pieces:
            created = _CREATED.search(events)
            self._created = int(created.group(1)) if created else None
        self.pieces += 1
        if events.endswith(DONE):
            self.done = True
        return self._take_checkpoints(events)

    def _cut_error(self, events: bytes) -> bytes:
        before = events.rfind(_END, 0, events.find(_ERROR_EVENT))
        begin = 0 if before == -1 else before + 2
        self.error = events[begin:]
        return events[:begin]

    def _take_checkpoints(self, events: bytes) -> tuple[bytes, int]:
        if not events.startswith(_MARK) and _LATER_MARK not in events:
            return events, 0
        kept: list[bytes] = []
        tokens = 0
        for line in events.splitlines(keepends=True):
            if line.startswith(_MARK):
                self._checkpoints.append(line)
                tokens += line.count(b",") + 1
            else:
                kept.append(line)
        return events if self._keep else b"".join(kept), tokens

    @property
    def pending(self) -> int:
        """Bytes of the unfinished event."""
        return len(self._tail)

    def new_connection(self) -> None:
        """The next bytes come from another connection: drop the event that was cut."""
        self._tail = b""
        self.error = None

    def resume(self, choices: int, now: int, earlier: Any = None) -> Resume:
        """Where each of the answers stands.

        Args:
            choices: how many answers there are.
            now: the time stamp if the stream has shown none.
            earlier: the `resume` of the request itself, where a gateway in front of this one had to
                continue the stream already.
        """
        before = None if earlier is None else Resume.model_validate(earlier)
        resumed = before.choices if before else [ResumedChoice() for _ in range(choices)]
        for index, token_ids, finished in read_checkpoints(b"".join(self._checkpoints)):
            resumed[index].token_ids.extend(token_ids)
            resumed[index].finished |= finished
        created = before.created if before else self._created
        return Resume(created=now if created is None else created, choices=resumed)


def resumed_body(fields: dict[str, Any], resume: Resume) -> bytes:
    """The request `fields` as JSON, asking to go on from `resume`."""
    return orjson.dumps({**fields, "resume": resume.model_dump()})
