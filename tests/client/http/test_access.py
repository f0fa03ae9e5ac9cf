"""Who may do what at the gateway: clients with and without keys, passwords and tokens."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from pydantic import ValidationError

from client.config import GatewayConfig
from tests.client.conftest import MakeGateway
from tests.client.posts import BODY, JSON, post
from tests.client.stub import Stub, stubs
from tests.serving import eventually


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("allowed_hosts", ["http://a"]), ("allowed_hosts", ["a:80"]), ("allowed_hosts", ["a*"])),
        *(
            ("allowed_origins", ["a.example"]),
            ("allowed_origins", ["https://a/b"]),
            ("allowed_origins", [""]),
        ),
        *(("joining_hosts", ["*"]), ("joining_hosts", ["10.0.0.0/99"]), ("joining_hosts", ["http://a"])),
        *(
            ("max_priority", 101),
            ("max_priority", -1),
            ("api_keys", [{"max_priority": 1}]),
            ("api_keys", [7]),
        ),
        ("max_joined_servers", -1),
    ],
)
def test_mistakes_in_the_configuration(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=key):
        GatewayConfig.model_validate({key: value})


# --- what only gateways say, and priorities


@pytest.mark.parametrize("route", ["/completion/v2", "/v1/completions", "/chat_completion/v1"])
async def test_clients_cannot_resume(make_gateway: MakeGateway, route: str) -> None:
    resume = {"created": 1, "choices": [{"token_ids": [1], "finished": False}]}
    async with stubs(server := Stub()), make_gateway([server]) as client:
        for fields in ({"resume": resume}, {"resume": {}}, {"resume": 0}):
            status, _, body = await client.post(route=route, stream=True, **fields)
            assert (status, body["error"]["param"]) == (400 if route.startswith("/v1/") else 422, "resume")
        assert not server.calls
        await client.complete(resume=None)


async def test_a_field_that_comes_twice_is_checked_as_the_server_reads_it(make_gateway: MakeGateway) -> None:
    """The parsers of gateway and servers take the last of two."""
    async with stubs(server := Stub()), make_gateway([server]) as client:
        twice = BODY[:-1] + b', "priority": 0, "prior\\u0069ty": 100}'
        assert (await post(client, JSON, twice))[0] == 403
        assert not server.calls


async def test_headers_that_gateways_send_are_refused_by_name(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        for name, value in [
            *(("x-stream-checkpoint", "1"), ("x-stream-checkpoint", "0")),
            *(("x-gateway-hops", "-1"), ("x-gateway-hops", "x"), ("x-gateway-hops", "9" * 5000)),
        ]:
            status, body = await post(client, JSON | {name: value})
            assert status == 400 and name in body["error"]["message"]
        assert not server.calls


async def test_priority_is_a_right(make_gateway: MakeGateway) -> None:
    config = {"api_keys": ["plain", {"key": "urgent", "max_priority": 50}], "max_priority": 3}
    async with stubs(server := Stub()), make_gateway([server], **config) as client:
        for key, priority, status in [
            *(("plain", -100, 200), ("plain", 3, 200), ("plain", 4, 403), ("plain", 10**30, 403)),
            *(("urgent", 50, 200), ("urgent", 51, 403)),
        ]:
            client.session.headers["authorization"] = f"Bearer {key}"
            status_now, _, body = await client.post(priority=priority)
            assert status_now == status, (key, priority)
            if status == 403:
                assert body["error"]["param"] == "priority"
                assert "'max_priority'" in body["error"]["message"]
    async with make_gateway() as client:
        assert (await client.post(priority=1))[0] == 403  # without keys, too


async def test_only_the_key_of_a_request_cancels_it(make_gateway: MakeGateway) -> None:
    server = Stub(seconds_per_token=0.05)
    async with stubs(server), make_gateway([server], api_keys=["one", "two"]) as client:
        headers = {"authorization": "Bearer one", "x-request-id": "mine"}
        client.session.headers.update(headers)
        request = asyncio.create_task(client.post("x", 1000))
        await eventually(lambda: server.live == 1)
        for key, status in [("two", 404), ("three", 401), ("one", 204)]:
            async with client.session.delete(
                "/requests/mine", headers={"authorization": f"Bearer {key}"}
            ) as response:
                assert response.status == status
        assert (await request)[0] == 409


# --- metrics and secrets


async def test_metrics_need_a_key_or_their_token(make_gateway: MakeGateway) -> None:
    for config, keys in [
        ({}, {"": 200}),
        ({"api_keys": ["one"]}, {"": 401, "one": 200}),
        ({"metrics_token": "scrape"}, {"": 401, "scrape": 200}),
        ({"api_keys": ["one"], "metrics_token": "scrape"}, {"": 401, "one": 200, "scrape": 200, "x": 401}),
    ]:
        async with make_gateway(**config) as client:
            for key, status in keys.items():
                headers = {"authorization": f"Bearer {key}"} if key else {}
                async with client.session.get("/metrics", headers=headers) as response:
                    assert response.status == status
            if "api_keys" in config:
                headers = {"authorization": "Bearer scrape"}
                async with client.session.get("/status", headers=headers) as response:
                    assert response.status == 401


@pytest.mark.parametrize(
    "answer", [None, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"rubbish\r\n\r\n"]
)
async def test_a_password_is_sent_and_never_shown(
    make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture, answer: bytes | None
) -> None:
    caplog.set_level(logging.DEBUG)
    server, gone = Stub(), Stub()
    async with stubs(server, gone):
        urls = [stub.url.replace("//", "//user:hunter2@") for stub in (server, gone)]
        accounts = [{"api_key": "k-1234", "base_url": urls[0], "models": ["far"]}]
        await gone.kill()
        config = {"continuous_batching_server_urls": urls, "openai_jumper_configs": accounts}
        config |= {"replica_wait_seconds": 0.3}  # which runs out
        async with make_gateway(**config) as client:
            await client.ready()
            await client.complete()
            await client.post(model="far", route="/v1/completions")
            assert server.calls[0].headers["authorization"] == "Basic dXNlcjpodW50ZXIy"
            server.raw = server.raw_status = answer
            bodies = [str((await client.post())[2])]
            for replica in client.gateway.registry:
                client.gateway.heartbeats.probe_now(replica)
            probes = server.probes
            await eventually(lambda: server.probes > probes)
            for route in ("/status", "/metrics", "/status/history", "/openapi.json", "/v1/models"):
                async with client.session.get(route) as response:
                    bodies.append(await response.text())
            shown = "".join(bodies) + caplog.text + repr(client.gateway.settings.config)
            shown += repr(list(client.gateway.registry)) + repr(list(client.gateway.jumpers))
            assert server.url in shown
            for secret in ("hunter2", "user:", "dXNlcjpodW50ZXIy", "k-1234"):
                assert secret not in shown


def test_errors_of_the_configuration_show_no_password() -> None:
    url = "http://user:hunter2@h:1"
    for config in (
        {
            "continuous_batching_server_urls": [url],
            "static_batching_server_urls": [url.replace("hunter", "h")],
        },
        {"continuous_batching_server_urls": [url], "server_key": "k"},
        {"continuous_batching_server_urls": [url + "?x"]},
        {"openai_jumper_configs": [{"api_key": "k", "base_url": url + "/v1/models"}]},
    ):
        with pytest.raises(ValidationError) as caught:
            GatewayConfig.model_validate(config)
        assert "hunter2" not in str(caught.value) and "user" not in str(caught.value).replace(
            "a user name", ""
        )


async def test_a_new_password_of_a_known_server_is_used(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        url = server.url.replace("//", "//user:new@")
        config = GatewayConfig.model_validate({"continuous_batching_server_urls": [url]})
        client.gateway.configure(config)
        await client.complete()
        assert server.calls[-1].headers["authorization"].startswith("Basic ")
        assert len(list(client.gateway.registry)) == 1


async def test_the_servers_get_their_key(make_gateway: MakeGateway) -> None:
    async with (
        stubs(server := Stub()),
        make_gateway([server], server_key="inner", api_keys=["outer"]) as client,
    ):
        client.session.headers["authorization"] = "Bearer outer"
        await client.complete()
        assert server.calls[0].headers["authorization"] == "Bearer inner"


async def test_a_refusal_by_a_server_says_why(make_gateway: MakeGateway) -> None:
    error = b'{"error": {"message": "list the name under \'allowed_hosts\'", "type": "permission_error"}}'
    head = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    async with stubs(server := Stub()), make_gateway([server]) as client:
        server.raw_status = head % len(error) + error
        (replica,) = client.gateway.registry
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: "list the name under 'allowed_hosts'" in replica.reason)


async def test_redirections_are_not_followed(make_gateway: MakeGateway) -> None:
    config = {"replica_wait_seconds": 0.3}  # which runs out
    async with stubs(server := Stub(), other := Stub()), make_gateway([server], **config) as client:
        redirection = f"HTTP/1.1 307 X\r\nLocation: {other.url}/x\r\nContent-Type: application/json\r\n"
        server.raw = server.raw_status = f"{redirection}Content-Length: 2\r\n\r\n{{}}".encode()
        assert (await client.post())[0] == 503
        (replica,) = client.gateway.registry
        await eventually(lambda: replica.state == "down")
        assert not other.calls and not other.probes
