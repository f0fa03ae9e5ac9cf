"""Numbers and dates that a server or an account sends, in a header or a body: within bounds, or nothing.

What is far out of bounds does not stay where it was sent: a whole number too large for a float breaks
every comparison with it, a rest of a million years ends an account.
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

MAX_COUNT = 2**53
"""The largest whole number that JSON's readers agree on."""
MAX_RETRY_AFTER = 3600.0
"""Seconds after which whoever asked for more patience is asked again."""

_COUNT = re.compile(r"[0-9]{1,16}")
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def count(value: object) -> int | None:
    """`value`, from JSON, if it is a whole number from 0 to `MAX_COUNT`."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def digits(text: str | None) -> int | None:
    """The same of decimal digits, as in a header."""
    return count(int(text)) if text is not None and _COUNT.fullmatch(text) else None


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait by a ``Retry-After`` header (RFC 9110, 10.2.3), from 0 to `MAX_RETRY_AFTER`.

    Args:
        value: seconds (a fraction too, as some endpoints send) or an HTTP-date in any of its forms.
        now: seconds since 1970.

    Returns:
        None where there is no such header, or it is neither.
    """
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
            # GMT where it does not say, as in the form of C's asctime
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
