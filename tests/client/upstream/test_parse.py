"""Numbers and dates of servers and accounts: within bounds, whatever stands there."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.upstream.parse import MAX_COUNT, MAX_RETRY_AFTER, count, digits, retry_after

NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC).timestamp()


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()))
def test_a_count_is_a_whole_number_within_bounds_or_none(value: object) -> None:
    good = type(value) is int and 0 <= value <= MAX_COUNT
    assert count(value) == (value if good else None)


@given(st.none() | st.text() | st.integers().map(str) | st.integers(0, MAX_COUNT).map(str))
def test_digits_are_a_count_or_none(text: str | None) -> None:
    found = digits(text)
    good = text is not None and text.isascii() and text.isdigit() and len(text) <= 16
    assert found == (count(int(text)) if text is not None and good else None)


@given(
    st.none()
    | st.text()
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(format_datetime)
)
def test_patience_is_within_bounds_or_none(value: str | None) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or 0.0 <= seconds <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0.5 ", 0.5),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30.0),
        ("Sun Nov  6 08:49:37 1994", 30.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:00:00 GMT", MAX_RETRY_AFTER),
        ("1e3", None),
        ("٣", None),
        ("5, 7", None),
    ],
)
def test_both_forms_of_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
