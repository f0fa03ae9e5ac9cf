"""Whether a request carries an accepted key."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence

from protocol.errors import unauthorized
from utils.config import Secret

_NAME = b"authorization"
_ANTHROPIC_NAME = b"x-api-key"


def authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The ``Authorization`` header of a request; empty where there is none.

    Where there is no such header but ``x-api-key``, in which Anthropic's clients send their key, it is
    as if the key had come as ``Bearer``.
    """
    headers = list(headers)
    found = b"".join([value for name, value in headers if name == _NAME])
    if found:
        return found
    key = b"".join([value for name, value in headers if name == _ANTHROPIC_NAME])
    return b"Bearer " + key if key else b""


NEEDED = "a valid key is needed, as 'Authorization: Bearer KEY'"
"""The error of a request without one."""


class Keys:
    """Keys of which a request may hold any; which one is found as quickly among many as among few.

    They are looked up by a keyed hash, so that how long that takes tells nothing of any of them.
    """

    def __init__(self, keys: Sequence[Secret]) -> None:
        self._salt = os.urandom(32)
        self._places: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            self._places.setdefault(self._hash(key.get_secret_value().encode()), place)

    def _hash(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._salt).digest()

    def find(self, authorization: bytes) -> int | None:
        """The place of the key that the ``Authorization`` header of a request holds, if it is one of them."""
        presented = _presented(authorization)
        return None if presented is None else self._places.get(self._hash(presented))


def check_key(authorization: bytes, key: Secret, message: str = NEEDED) -> None:
    """Check that the ``Authorization`` header of a request holds `key`.

    Args:
        authorization: the header.
        key: the one that may come in.
        message: the error of a request without it.

    Raises:
        ApiError: 401 unless it is ``Bearer`` and `key`.
    """
    presented = _presented(authorization)
    if presented is None or not hmac.compare_digest(presented, key.get_secret_value().encode()):
        raise unauthorized(message)


def _presented(authorization: bytes) -> bytes | None:
    scheme, _, presented = authorization.partition(b" ")
    return presented if scheme.lower() == b"bearer" else None
