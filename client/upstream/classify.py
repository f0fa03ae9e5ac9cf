"""Classifies what came back from a server, once for retries, breaker, health and metrics."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import StrEnum

import aiohttp
from pydantic import ValidationError

from protocol.errors import LOOP_DETECTED, ErrorResponse, status_of
from utils.messages import one_line


class Outcome(StrEnum):
    """What an attempt says about the server's health."""

    SUCCESS = "success"
    NEUTRAL = "neutral"
    FAILURE = "failure"


class Suspicion(StrEnum):
    """What to do about the replica before it is given more work."""

    NONE = "none"
    PROBE = "probe"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement.

    `retry` says that another replica may be asked, as long as the client has had no byte that a
    second answer would contradict; `explicable` that the request may be what failed, so that the failure
    counts against the replica only where another attempt shows that it is not; `engine_lost` that an
    engine died at work on the request, perhaps because of it.
    """

    outcome: Outcome
    retry: bool
    suspicion: Suspicion = Suspicion.NONE
    explicable: bool = False
    engine_lost: bool = False


class AttemptFailed(Exception):
    """An attempt that brought no answer, for a reason that only the gateway can see."""


class ReplicaHung(AttemptFailed):
    """The replica accepts connections but does not answer; its work is given to others."""

    def __str__(self) -> str:
        return "the server hangs"


class BadAnswer(AttemptFailed):
    """The replica answered with something that is not of the protocol."""


class Diverged(AttemptFailed):
    """A server that went on with a stream answered otherwise than the one before it."""

    def __str__(self) -> str:
        return "the stream was cut, and the server that went on with it answered otherwise"


class AnswerTimeout(AttemptFailed):
    """The replica took longer for this answer, or for its next piece, than is allowed."""

    busy = False
    """Whether it served other requests meanwhile, so that it is this one that is slow."""

    def __str__(self) -> str:
        return "the server took too long"


class StreamFailed(AttemptFailed):
    """The replica ended the stream with an error event; `event` is that event."""

    def __init__(self, event: bytes) -> None:
        super().__init__(event.decode(errors="replace").strip())
        self.event = event

    @property
    def body(self) -> bytes:
        """The error as the body of a whole answer."""
        return self.event.partition(b"data: ")[2].rstrip()

    @property
    def status(self) -> int:
        """The status that a whole answer with this error has; 0 where it is no error of the protocol."""
        try:
            return status_of(ErrorResponse.model_validate_json(self.body).error)
        except ValidationError:
            return 0

    @property
    def retryable(self) -> bool:
        """Whether it is the server that is away (a lost engine, a shutdown)."""
        return self.status == 503


OK = Verdict(Outcome.SUCCESS, retry=False)
BUSY = Verdict(Outcome.NEUTRAL, retry=True)
AWAY = Verdict(Outcome.NEUTRAL, retry=True, suspicion=Suspicion.PROBE)
ENGINE_LOST = Verdict(Outcome.NEUTRAL, retry=True, suspicion=Suspicion.PROBE, engine_lost=True)
REFUSED = Verdict(Outcome.NEUTRAL, retry=False)
BROKEN = Verdict(Outcome.FAILURE, retry=True, suspicion=Suspicion.PROBE, explicable=True)
UNREACHABLE = Verdict(Outcome.FAILURE, retry=True, suspicion=Suspicion.DOWN)
FAULTY = Verdict(Outcome.FAILURE, retry=True, explicable=True)
"""Asked of one other replica: if that fails as well, it is the request."""
TIMED_OUT = Verdict(Outcome.FAILURE, retry=False, suspicion=Suspicion.PROBE)
SLOW_REQUEST = Verdict(Outcome.FAILURE, retry=False, explicable=True)
"""It took too long; asking for it again would take as long."""

OF_THE_REQUEST = (501, 505, LOOP_DETECTED)
"""What a server never answers on its own account, whatever the first digit says."""
MAX_DESCRIPTION = 300
MODEL_NOT_FOUND = b'"model_not_found"'
LOST = b'"engine_lost"'


def of_status(status: int, body: bytes = b"") -> Verdict:
    """Judge a whole answer by its status (and, for 404 and 503, its body)."""
    if status < 400:
        return OK
    if status == 429:
        return BUSY
    if status == 503:
        return ENGINE_LOST if LOST in body else AWAY
    if status == 502:
        return BROKEN
    if status == 504:
        return SLOW_REQUEST
    if status == 404 and MODEL_NOT_FOUND in body:
        return AWAY  # it serves another model than when it was last asked
    return REFUSED if status < 500 or status in OF_THE_REQUEST else FAULTY


def describe(error: Exception) -> str:
    """One line on what went wrong, for people."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if (
            cause.errno is not None and cause.errno in errno.errorcode
        ):  # a name that does not resolve has a number of its own
            return f"cannot connect: {os.strerror(cause.errno)}"
        return f"cannot connect: {cause.strerror or cause}"
    # some errors quote what the server sent, which may be long or not text
    return "".join(char if char.isprintable() else "?" for char in one_line(error)[:MAX_DESCRIPTION])


def of_error(error: Exception) -> Verdict:
    """Judge an attempt that ended without a whole answer.

    Raises:
        Exception: `error` itself, where it is no failure of a server but of this program.
    """
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return UNREACHABLE  # refused, no route, no such host, no answer to the handshake
    if isinstance(error, AnswerTimeout):
        return SLOW_REQUEST if error.busy else TIMED_OUT
    if isinstance(error, StreamFailed):
        if error.status == 500:
            return FAULTY
        return of_status(503, error.body) if error.retryable else REFUSED
    if isinstance(error, Diverged):
        return REFUSED  # not a fault of the server: a different order of sums rounds differently
    if isinstance(error, aiohttp.ClientError | AttemptFailed | OSError):
        return BROKEN
    raise error
