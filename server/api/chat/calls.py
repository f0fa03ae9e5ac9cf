"""Ids of tool calls."""

from __future__ import annotations

import hashlib
import string

_ALPHABET = string.ascii_letters + string.digits


class CallIds:
    """Ids for the calls of a request's answers.

    They follow from the request's id, so that a server that goes on with an answer names its calls alike.

    Args:
        request_id: of the request.
        prefix: how ids begin.
        short: nine letters and digits, as the templates of some models insist.
    """

    def __init__(self, request_id: str, prefix: str, *, short: bool = False) -> None:
        self._request_id = request_id
        self._prefix = "" if short else prefix
        self._length = 9 if short else 24

    def of(self, answer: int, call: int) -> str:
        """The id of call number `call` of an answer."""
        digest = hashlib.sha256(f"{self._request_id}/{answer}/{call}".encode()).digest()
        return self._prefix + "".join(_ALPHABET[byte % 62] for byte in digest[: self._length])
