"""A line for each request that was refused or failed, or for every one: who asked what, and what came of it.

Prompts and keys stand in no line: of an error there are only its code and the field at fault.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol import routes
from protocol.errors import CLIENT_CLOSED_REQUEST
from protocol.headers import REQUEST_ID
from utils.config import ConfigModel

logger = logging.getLogger("access")

Note = Callable[[Scope, int, float, str, bytes], None]
"""`AccessLog.note`"""

BURST = 100
LINES_PER_SECOND = 10.0
LONGEST_TARGET = 200
_PROBES = (routes.HEALTH, routes.READY)
"""Asked all the time while a service is not ready, which its log tells anyway."""
_REQUEST_ID = REQUEST_ID.encode()


class AccessLogConfig(ConfigModel):
    """Keys in the configuration of every service."""

    access_log: Literal["errors", "all", "none"] = Field(
        "errors", description="which requests get a line in the log; at most 10 refused ones a second"
    )


class Throttle:
    """Lets `BURST` lines through, and `LINES_PER_SECOND` from then on: who is refused again and again shall
    not fill the disk.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines = float(BURST)
        self._at = clock()
        self._left_out = 0

    def passes(self) -> int | None:
        """How many lines were left out before this one; None where it is left out, too."""
        now = self._clock()
        self._lines = min(float(BURST), self._lines + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        if self._lines < 1.0:
            self._left_out += 1
            return None
        self._lines -= 1.0
        left_out, self._left_out = self._left_out, 0
        return left_out


class AccessLog:
    """Writes the lines for `app`.

    Args:
        app: an ASGI application.
        config: gives the configuration in use.
    """

    def __init__(self, app: ASGIApp, config: Callable[[], AccessLogConfig]) -> None:
        self._app = app
        self._config = config
        self._throttle = Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start = time.perf_counter()
        status, head, error = CLIENT_CLOSED_REQUEST, None, b""
        ended = False

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status, head, error, ended
            if message["type"] == "http.response.start":
                status, head = message["status"], message
            else:
                if status >= 400 and not error:
                    error = message.get("body", b"")
                ended = not message.get("more_body", False)
            return send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = 500
            raise
        finally:
            if not ended and status < 400:
                status = CLIENT_CLOSED_REQUEST  # within its answer
            request_id = "-" if head is None else _header(head, _REQUEST_ID)
            self.note(scope, status, time.perf_counter() - start, request_id, error)

    def note(self, scope: Scope, status: int, seconds: float, request_id: str, error: bytes) -> None:
        """Write a line for a request that ended, where the configuration asks for one.

        Args:
            error: the body of its answer, or the beginning of it, if that is an error.
        """
        mode = self._config().access_log
        if mode != "none" and (status >= 400 or mode == "all" or logger.isEnabledFor(logging.DEBUG)):
            said = f"{request_id} {_fault(error)}" if error else request_id
            self._write(scope, mode, status, seconds, said)

    def _write(self, scope: Scope, mode: str, status: int, seconds: float, said: str) -> None:
        refused = status >= 400 and scope["path"] not in _PROBES
        if mode == "all" or not refused:
            level, left_out = (logging.INFO if mode == "all" else logging.DEBUG), 0
        else:
            passed = self._throttle.passes()
            if passed is None:
                return
            level, left_out = logging.INFO, passed
        if not logger.isEnabledFor(level):
            return
        client: Any = scope.get("client") or "-"
        line = f"{client[0]} {scope['method']} {_target(scope)} {status} {seconds:.3f} s {said}"
        logger.log(level, "%s%s", line, _left_out(left_out))


def log_malformed(client: str, status: int, said: str, throttle: Throttle) -> None:
    """A line for what `client` sent in place of a request, which no application sees."""
    left_out = throttle.passes()
    if left_out is not None:
        logger.info("%s malformed %d %s%s", client, status, said, _left_out(left_out))


def _left_out(lines: int) -> str:
    return f" ({lines} lines before this one were left out)" if lines else ""


def _target(scope: Scope) -> str:
    """The path as it was sent: no control character can end the line."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    text = "".join(chr(byte) if 0x21 <= byte < 0x7F else f"%{byte:02X}" for byte in raw[:LONGEST_TARGET])
    return text + ("…" if len(raw) > LONGEST_TARGET else "")


def _header(message: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in message["headers"] if key == name), "-")


def _fault(body: bytes) -> str:
    """Code and field of the error that `body` holds."""
    try:
        error = json.loads(body)["error"]
        found = [error.get("code") or error.get("type"), error.get("param")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return "-"
    return " ".join([_word(value) for value in found if isinstance(value, str)]) or "-"


def _word(value: str) -> str:
    """`value`, which may hold a name that the client chose, as one short printable word."""
    return "".join(c if c.isprintable() and not c.isspace() else "?" for c in value[:60])
