"""How many values a JSON text has, beside a reader that makes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.json_values import CONTAINER, PAIR, too_many_values

Json = None | bool | int | str | list[Any] | dict[str, Any]

VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\\\,:[{', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text('a"\\\\,:{', max_size=4), inner, max_size=5)
    ),
    max_leaves=30,
)


def counted(value: Json) -> int:
    if isinstance(value, list):
        return CONTAINER + max(0, len(value) - 1) + sum(map(counted, value))
    if isinstance(value, dict):
        pairs = PAIR * len(value) + max(0, len(value) - 1)
        return CONTAINER + pairs + sum(map(counted, value.values()))
    return 0


@given(VALUES)
def test_what_stands_in_strings_does_not_count(value: Json) -> None:
    text, size = json.dumps(value).encode(), counted(value)
    assert not too_many_values(text, size)
    assert size == 0 or too_many_values(text, size - 1)


@pytest.mark.parametrize("text", [b"", b'"', b'"\\', b'{"a": "[[[[', b"\\", b'["\\\\"', b"\xff,"])
def test_what_is_no_json_is_looked_at_as_well(text: bytes) -> None:
    assert not too_many_values(text, 100)
    assert too_many_values(text + b'"' + b"," * 101 + b'"' + b"," * 101, 100)
