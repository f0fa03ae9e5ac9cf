"""Servers that join by an event: from where, how many, and what they are asked."""

from __future__ import annotations

import aiohttp
import pytest

from client.health.joining import joining_url
from protocol import routes
from protocol.errors import ApiError
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs


async def join(client: GatewayClient, url: str, **fields: str) -> tuple[int, str]:
    event = {"url": url, "service": "continuous_batching", "model_id": "m"}
    headers = {"authorization": "Bearer shared", **fields}
    async with client.session.post(routes.EVENT_SERVER_STARTUP, json=event, headers=headers) as response:
        return response.status, await response.text()


@pytest.mark.parametrize(
    ("url", "status"),
    [
        *(("http://169.254.169.254:80", 403), ("http://[fd00:ec2::254]:80", 403), ("http://0.0.0.0:80", 403)),
        *(
            ("http://[::ffff:169.254.169.254]:80", 403),
            ("http://2852039166:80", 403),
            ("http://10.9.8.7:1", 403),
        ),
        *(("http://metadata.google.internal:80", 403), ("http://evil.example:80", 403)),
        *(
            ("http://user:hunter2@127.0.0.1:1", 422),
            ("http://127.0.0.1:1/admin", 422),
            ("http://127.0.0.1:1?x", 422),
        ),
        *(("ftp://127.0.0.1:1", 422), ("file:///etc/passwd", 422), ("http://127.0.0.1:1#x", 422), ("", 422)),
    ],
)
async def test_where_no_server_may_join_from(make_gateway: MakeGateway, url: str, status: int) -> None:
    async with make_gateway(event_token="shared") as client:
        found, body = await join(client, url)
        assert found == status and "hunter2" not in body
        assert not list(client.gateway.registry)


async def test_at_most_so_many_join(make_gateway: MakeGateway) -> None:
    async with make_gateway(event_token="shared", max_joined_servers=2) as client:
        found = [await join(client, f"http://127.0.0.1:{port}") for port in (1, 2, 3, 1)]
        assert [status for status, _ in found] == [200, 200, 429, 200]
        assert "'max_joined_servers'" in found[2][1]


@pytest.mark.parametrize("field", ["x-forwarded-for", "forwarded", "x-real-ip", "client-ip", "via"])
async def test_nobody_says_himself_where_he_calls_from(make_gateway: MakeGateway, field: str) -> None:
    async with make_gateway(event_token="shared") as client:
        said = {"forwarded": "for=10.9.8.7", "via": "1.1 10.9.8.7"}.get(field, "10.9.8.7")
        found, body = await join(client, "http://10.9.8.7:1", **{field: said})
        assert (found, "127.0.0.1" in body) == (403, True)
        assert not list(client.gateway.registry)


@pytest.mark.parametrize(
    ("url", "caller", "allowed", "joins"),
    [
        ("http://10.0.0.7:1", "10.0.0.7", [], True),
        ("http://[fd00::7]:1", "fd00:0::7", [], True),
        ("http://10.0.0.7:1", "::ffff:10.0.0.7", [], True),
        ("http://localhost:1", "127.0.0.1", [], True),
        ("http://127.0.0.2:1", "::1", [], True),
        ("http://127.0.0.1:1", "10.0.0.7", [], False),
        ("http://10.0.0.8:1", "10.0.0.7", [], False),
        ("http://169.254.169.254:1", "169.254.169.254", [], False),
        ("http://gpu-1:1", "10.0.0.7", [], False),
        ("http://gpu-1:1", "10.0.0.7", ["gpu-1"], True),
        ("http://a.lan:1", "10.0.0.7", ["*.lan"], True),
        ("http://lan:1", "10.0.0.7", ["*.lan"], False),
        ("http://10.1.2.3:1", "10.0.0.7", ["10.0.0.0/8"], True),
        ("http://11.1.2.3:1", "11.1.2.3", ["10.0.0.0/8"], False),
        ("http://169.254.169.254:1", "10.0.0.7", ["0.0.0.0/0"], False),
        ("http://10.0.0.7:1", "", [], False),
    ],
)
def test_where_a_joining_server_may_be(url: str, caller: str, allowed: list[str], joins: bool) -> None:
    if joins:
        assert joining_url(url, caller, allowed) == url
    else:
        with pytest.raises(ApiError) as caught:
            joining_url(url, caller, allowed)
        assert caught.value.status == 403


async def test_a_joined_server_is_asked_for_its_status_alone(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway(event_token="shared") as client:
        assert (await join(client, server.url.replace("127.0.0.1", "localhost")))[0] == 200
        await client.ready()
        async with aiohttp.ClientSession() as session, session.get(client.url + "/status") as response:
            (replica,) = (await response.json())["replicas"]
        assert replica["joined"] == "event" and not server.calls
