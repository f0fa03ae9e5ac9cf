"""Cached prompts are a tenant's own: which salt the gateway sends its servers with whose requests."""

from __future__ import annotations

from typing import Any

import pytest

from client.requests.prefix import CHUNK_CHARS
from client.requests.request import read_request
from protocol.headers import CACHE_SALT
from tests.client.conftest import MakeGateway
from tests.client.posts import JSON, post
from tests.client.stub import Stub, stubs

KEYS: list[Any] = [
    "one",
    "two",
    {"key": "three", "tenant": "acme"},
    {"key": "four", "tenant": "acme"},
    "acme",
]


async def salts(
    make_gateway: MakeGateway, *calls: dict[str, str], keys: list[Any] = KEYS
) -> list[str | None]:
    """What a server is told with requests of these headers."""
    async with stubs(server := Stub()), make_gateway([server], api_keys=keys) as client:
        for headers in calls:
            status, _ = await post(client, headers | JSON)
            assert status == 200
        return [call.headers.get(CACHE_SALT) for call in server.calls]


def key(name: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"} | headers


async def test_a_key_is_its_own_tenant_unless_it_has_one(make_gateway: MakeGateway) -> None:
    names = ["one", "one", "two", "three", "four", "acme"]
    found = await salts(make_gateway, *map(key, names))
    one, same, two, three, four, acme = found
    assert one == same and three == four and len({one, two, three, acme}) == 4
    assert not any(name in str(salt) for salt in found for name in names)
    assert await salts(make_gateway, key("one"), keys=["one"]) == [one], "at every gateway the same"


async def test_a_client_divides_what_is_its_own(make_gateway: MakeGateway) -> None:
    calls = [key("one"), key("one", **{CACHE_SALT: "x"}), key("two", **{CACHE_SALT: "x"})]
    found = await salts(
        make_gateway, *calls, key("one", **{CACHE_SALT: str((await salts(make_gateway, *calls))[0])})
    )
    assert None not in found and len(set(found)) == 4


async def test_without_keys_all_are_one(make_gateway: MakeGateway) -> None:
    none, some = await salts(make_gateway, {}, {CACHE_SALT: "x"}, keys=[])
    assert none is None and some not in (None, "x")


@pytest.mark.parametrize("body", ["", ', "cache_salt": "s"'])
def test_prompts_of_unequal_salts_are_not_taken_for_alike(body: str) -> None:
    data = b'{"model": "m", "prompt": "%s"%s}' % (b"a" * CHUNK_CHARS, body.encode())
    keys = [read_request("id", "/completion/v2", data, cache_salt=salt).prefix for salt in (None, "x", "x")]
    plain = read_request("id", "/completion/v2", data.replace(body.encode(), b"")).prefix
    assert keys[1] == keys[2] != keys[0] and (keys[0] == plain) == (not body)
