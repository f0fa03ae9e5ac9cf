"""How far a stream has come, so that another server can continue it.

The servers hide checkpoints in the stream (`protocol.sse`): which token ids each event stands for.
The journal takes them out of what the client gets and keeps them unparsed, since they are needed
only if the stream is cut.
"""

from __future__ import annotations

import re
import time
from typing import Any

import orjson

from client.health.replica import Replica
from client.requests.request import InferenceRequest
from client.upstream.parse import digits
from protocol.completion import Resume, ResumedChoice
from protocol.sse import DONE, END, MORE, read_cached, read_checkpoints

_MARK = b": tokens "
_CACHED = b": cached "
_COMMENT = b": "
_LATER_COMMENT = b"\n" + _COMMENT
_AT_END = re.compile(b"^" + END, re.MULTILINE)
_EVENT = b"data: {"
_END = b"\n\n"
_CREATED = re.compile(rb'"created(?:_at)?": ?(\d+)')
_TEXT = re.compile(rb'"(?:text|content|reasoning_content|thinking|arguments|partial_json|delta)": ?"[^"]')
_ERROR_EVENT = b"event: error\n"
_LATER_FIELDS = {"weights", "cached_tokens", "sampling"}
"""Those of a record that older servers do not know."""


class Journal:
    """What of one stream the client has been sent."""

    __slots__ = (
        "_blind",
        "_checkpoints",
        "_created",
        "_tail",
        "done",
        "error",
        "pieces",
        "sampling",
        "weights",
    )

    long_events = False
    """Whether an event may be as long as the prompt."""

    def __init__(self) -> None:
        self._tail = b""
        self._blind = False  # whether there was text without a checkpoint
        self._checkpoints: list[bytes] = []
        self._created: int | None = None
        self.pieces = 0
        """How often there were events to send to the client."""
        self.done = False
        """Whether the stream has come to its end."""
        self.error: bytes | None = None
        """The error event with which the server ended the stream; it is not passed on."""
        self.weights: str | None = None
        """Fingerprint of the weights that the stream began with, where the server reported it."""
        self.sampling: str | None = None
        """The same of that server's defaults, as it wrote them."""

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
                self._blind = self._blind or _TEXT.search(data) is not None
                return data, 0
            begin = data.find(b"\n") + 1
            if data.startswith(_MARK) and data.startswith(_EVENT, begin):
                self.pieces += 1
                self._checkpoints.append(data[:begin])
                return data[begin:], data.count(b",", 0, begin) + 1
        return self._feed_any(data)

    def _feed_any(self, data: bytes) -> tuple[bytes, int]:
        end = data.rfind(_END) + 2
        if end == 1:
            end = 0
        if MORE in data:
            end = _end_of_groups(data, end)
        events, self._tail = data[:end], data[end:]
        if _ERROR_EVENT in events:
            events = self._cut_error(events)
        if not events:
            return b"", 0
        if not self.pieces:
            created = _CREATED.search(events)
            self._created = digits(created.group(1).decode()) if created else None
        self.pieces += 1
        if events.endswith(DONE) or _AT_END.search(events):
            self.done = True
        return self._take_checkpoints(events)

    def _cut_error(self, events: bytes) -> bytes:
        before = events.rfind(_END, 0, events.find(_ERROR_EVENT))
        begin = 0 if before == -1 else before + 2
        self.error = events[begin:]
        return events[:begin]

    def _take_checkpoints(self, events: bytes) -> tuple[bytes, int]:
        if not events.startswith(_COMMENT) and _LATER_COMMENT not in events:
            self._blind = self._blind or _TEXT.search(events) is not None
            return events, 0
        kept: list[bytes] = []
        tokens = 0
        for line in events.splitlines(keepends=True):
            if line.startswith(_MARK):
                self._checkpoints.append(line)
                tokens += line.count(b",") + 1
            elif line.startswith(_CACHED):
                self._checkpoints.append(line)
            elif line not in (MORE, END):
                kept.append(line)
        shown = b"".join(kept)
        if not tokens:
            self._blind = self._blind or _TEXT.search(shown) is not None
        return shown, tokens

    @property
    def pending(self) -> int:
        """Bytes of the unfinished event."""
        return len(self._tail)

    def new_connection(self) -> None:
        """The next bytes come from another connection: drop the event that was cut."""
        self._tail = b""
        self.error = None

    def resume(self, choices: int, now: int) -> Resume:
        """The state of each answer, for the server that continues.

        Args:
            choices: how many answers there are.
            now: the time stamp if the stream has shown none.

        Raises:
            ValueError: the checkpoints of the stream do not allow another server to continue it.
        """
        if self._blind:
            raise ValueError("text came without a checkpoint")
        resumed = [ResumedChoice() for _ in range(choices)]
        checkpoints = b"".join(self._checkpoints)
        for index, token_ids, finished in read_checkpoints(checkpoints):
            if index >= len(resumed):
                raise ValueError(f"a checkpoint of answer {index} among {len(resumed)}")
            if resumed[index].finished:
                raise ValueError(f"answer {index} goes on after its end")
            resumed[index].token_ids.extend(token_ids)
            resumed[index].finished = finished
        created = now if self._created is None else self._created
        defaults = None if self.sampling is None else orjson.loads(self.sampling)
        return Resume(
            created=created,
            choices=resumed,
            weights=self.weights,
            cached_tokens=read_cached(checkpoints),
            sampling=defaults,
        )

    def resumable(self, choices: int) -> bool:
        """Whether another server can go on with it."""
        try:
            self.resume(choices, 0)
        except ValueError:
            return False
        return True

    def goes_on(self, request: InferenceRequest, replica: Replica) -> bool:
        """Whether `replica` can go on with this stream of `request`."""
        if replica.engine is not None or not replica.has_weights(self.weights):
            return False
        return replica.terms.take(request.route, request.resumed_option)

    def body(self, request: InferenceRequest, replica: Replica) -> bytes:
        """What to send `replica` for the stream, or for the rest of it."""
        if not self.pieces:
            return request.body
        resume = self.resume(request.choices, int(time.time()))
        return resumed_body(request.fields, resume, checks_weights=replica.fingerprint is not None)


def _end_of_groups(data: bytes, end: int) -> int:
    """Where the last whole group of events ends in `data`, of which `end` bytes are whole events."""
    while end:
        begin = data.rfind(_END, 0, end - 2) + 2
        begin = 0 if begin == 1 else begin
        if not data.startswith(MORE, begin):
            return end
        end = begin
    return 0


def resumed_body(fields: dict[str, Any], resume: Resume, *, checks_weights: bool) -> bytes:
    """The request `fields` as JSON, asking to go on from `resume`.

    Args:
        checks_weights: whether the server that gets it knows of fingerprints; an older one refuses the fields
            that came with them.
    """
    record = resume.model_dump(exclude_none=True, exclude=set() if checks_weights else _LATER_FIELDS)
    return orjson.dumps({**fields, "resume": record})
