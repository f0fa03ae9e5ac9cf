"""Whose cached prompts a request may reuse: those of its tenant, as the gateway's header tells servers."""

from __future__ import annotations

from hashlib import blake2b

from client.http.keys import Caller
from protocol.headers import CACHE_SALT


def cache_salt(caller: Caller, presented: bytes | None) -> str | None:
    """The salt to send with a request of `caller`; None without keys and without a salt of the client.

    Keys of one tenant have the same, at every gateway: it follows from the name of the tenant, else from the
    key.

    Args:
        presented: value of `CACHE_SALT`: a client, or a gateway in front of this one, divides its own by it.
    """
    name = caller.key if caller.tenant is None else caller.tenant
    if name is None and presented is None:
        return None
    salt = blake2b(digest_size=16, person=CACHE_SALT.encode())
    for part in (b"key" if caller.tenant is None else b"tenant", (name or "").encode(), presented or b""):
        salt.update(len(part).to_bytes(4, "little") + part)
    return salt.hexdigest()
