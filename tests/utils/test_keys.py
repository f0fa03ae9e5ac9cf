"""Keys are found among many as among few, and nothing else is."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from client.config import GatewayConfig
from client.http.keys import caller
from protocol.errors import ApiError
from utils.keys import Keys, check_key


class Counted(SecretStr):
    """Counts how often it is looked at."""

    looks = 0

    def get_secret_value(self) -> str:
        type(self).looks += 1
        return super().get_secret_value()


def test_looking_for_a_key_touches_none_of_them() -> None:
    keys = Keys([Counted(f"key {i}") for i in range(1000)])
    before = Counted.looks
    assert keys.find(b"Bearer key 999") == 999
    assert keys.find(b"bearer key 0") == 0
    assert keys.find(b"Bearer key 1000") is None
    assert Counted.looks == before


@pytest.mark.parametrize("header", [b"", b"key 1", b"Basic key 1", b"Bearer", b"Bearer ", b"Bearer key 1 "])
def test_what_is_no_key(header: bytes) -> None:
    assert Keys([SecretStr("key 1")]).find(header) is None
    with pytest.raises(ApiError) as refused:
        check_key(header, SecretStr("key 1"))
    assert refused.value.status == 401


def test_without_keys_none_is_found() -> None:
    assert Keys([]).find(b"Bearer ") is None


def test_a_key_listed_twice_has_the_rights_of_its_first_place() -> None:
    config = GatewayConfig.model_validate({"api_keys": [{"key": "a", "max_priority": 5}, "a"]})
    assert caller(b"Bearer a", config).max_priority == 5
