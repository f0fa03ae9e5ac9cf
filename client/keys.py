"""Who may come in: keys of clients, and the token of servers."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from protocol.errors import unauthorized
from utils.config import Secret


def check_key(authorization: bytes, keys: Sequence[Secret]) -> None:
    """Check the ``Authorization`` header of a request; without `keys` everybody may come in.

    Raises:
        ApiError: 401 unless it is ``Bearer`` and one of `keys`.
    """
    if not keys:
        return
    scheme, _, presented = authorization.partition(b" ")
    # all are compared, each in constant time: how long it takes tells nothing of any key
    matches = [hmac.compare_digest(presented, key.get_secret_value().encode()) for key in keys]
    if scheme.lower() != b"bearer" or not any(matches):
        raise unauthorized("a valid key is needed, as 'Authorization: Bearer KEY'")
