"""Everything that is no completion: status, metrics, models, keys, events, the OpenAPI document."""

from __future__ import annotations

import asyncio
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from prometheus_client.parser import text_string_to_metric_families

from client.app import create_app
from client.config import GatewayConfig
from client.http.status import GatewayStatus
from protocol import routes
from protocol.status import ServerState
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import Stub, stubs
from tests.serving import eventually, serving


async def metrics(client: GatewayClient) -> dict[str, float]:
    """Samples as Prometheus' own parser reads them, by name and the values of their sorted labels."""
    async with client.session.get("/metrics") as response:
        text = await response.text()
    return {
        " ".join([sample.name, *(sample.labels[label] for label in sorted(sample.labels))]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_account_for_every_request(make_gateway: MakeGateway) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server]) as client:
        for _ in range(3):
            await client.complete("x", 5)
        await client.stream("x", 7)
        await client.post(model="unknown")
        server.seconds_per_token = 0.05
        cut = asyncio.create_task(client.complete("x", 1000))
        await eventually(lambda: server.live == 1)
        seen = await metrics(client)
        assert seen["gateway_requests_received_total /completion/v2"] == 6
        assert seen["gateway_requests_in_flight"] == 1
        assert seen[f"gateway_server_tokens continuous_batching m {server.url}"] == 1000
        cut.cancel()
        await eventually(lambda: not client.gateway.deadlines.in_flight)
        seen = await metrics(client)
        finished = {name: value for name, value in seen.items() if "requests_finished_total" in name}
        assert finished == {
            "gateway_requests_finished_total /completion/v2 200": 4,
            "gateway_requests_finished_total /completion/v2 404": 1,
            "gateway_requests_finished_total /completion/v2 499": 1,
        }
        assert seen["gateway_generated_tokens_total"] == 3 * 5 + 7
        assert seen["gateway_request_seconds_count /completion/v2"] == 6
        assert seen["gateway_time_to_first_event_seconds_count"] == 1
        assert seen[f"gateway_attempts_total success {server.url}"] == 4
        assert seen[f"gateway_server_state continuous_batching m {server.url} ready"] == 1
        assert seen[f"gateway_server_state continuous_batching m {server.url} down"] == 0


async def test_status(make_gateway: MakeGateway) -> None:
    server, other = Stub(), Stub(model="s", kind="static_batching")
    config = {"replica_wait_seconds": 0.3}  # which runs out
    async with stubs(server, other), make_gateway([server, other], **config) as client:
        await client.complete("x", 5)
        async with client.session.get("/status") as response:
            status = GatewayStatus.model_validate_json(await response.read())
        assert [(r.url, r.state, r.model_id) for r in status.replicas] == [
            (server.url, "ready", "m"),
            (other.url, "ready", "s"),
        ]
        assert status.requests.received == status.requests.finished == 1
        assert status.requests.in_flight == status.requests.waiting == 0
        await other.kill()
        await client.post(route="/completion/v1", model="s")
        async with client.session.get("/status") as response:
            status = GatewayStatus.model_validate_json(await response.read())
        assert status.replicas[1].state == "down" and "cannot connect" in status.replicas[1].reason
        async with client.session.get("/status/history") as response:
            assert response.status == 200


async def test_probes_and_unknown_routes(make_gateway: MakeGateway) -> None:
    async with make_gateway() as client:
        for method, route, status in [
            ("GET", "/health", 200),
            ("GET", "/ready", 200),
            ("GET", "/", 200),
            ("GET", "/nowhere", 404),
            ("GET", "/completion/v2", 405),
            ("POST", "/status", 405),
            ("DELETE", "/requests/unknown", 404),
        ]:
            async with client.session.request(method, route) as response:
                assert response.status == status, route
                if status >= 400:
                    assert set((await response.json())["error"]) == {"message", "type", "param", "code"}


async def test_load_balancers_probe_with_head(make_gateway: MakeGateway) -> None:
    async with make_gateway() as client:
        for route in ("/health", "/ready", "/"):
            async with client.session.get(route) as got, client.session.head(route) as response:
                assert response.status == got.status == 200
                assert response.headers["content-length"] == got.headers["content-length"]
                assert await response.read() == b""
        client.gateway.draining = True
        async with client.session.head("/ready") as response:
            assert response.status == 503 and await response.read() == b""


async def test_keys(make_gateway: MakeGateway) -> None:
    server = Stub()
    async with stubs(server), make_gateway([server], api_keys=["one", "two"]) as client:
        open_routes = ["/health", "/ready", "/"]
        closed_routes = [
            "/metrics",
            "/status",
            "/status/history",
            "/v1/models",
            "/cb_server/available_models",
        ]
        for route in open_routes:
            async with client.session.get(route) as response:
                assert response.status == 200
        for header in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}):
            for route in closed_routes:
                async with client.session.get(route, headers=header) as response:
                    assert response.status == 401
            async with client.session.post("/completion/v2", json={}, headers=header) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (401, "invalid_api_key")
        for key in ("one", "two"):
            client.session.headers["authorization"] = f"bearer {key}"
            assert (await client.post())[0] == 200
            async with client.session.get("/status") as response:
                assert response.status == 200 and "two" not in await response.text()
        assert all("authorization" not in call.headers for call in server.calls)


# --- events


async def announce(client: GatewayClient, route: str, server: Stub, token: str | None = None) -> int:
    event = {"url": server.url + "/", "service": server.kind, "model_id": server.model}
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with client.session.post(route, json=event, headers=headers) as response:
        return response.status


async def told(client: GatewayClient, route: str, server: Stub) -> tuple[int, bytes]:
    event = {"url": server.url, "service": server.kind, "model_id": server.model}
    async with client.session.post(route, json=event) as response:
        return response.status, await response.read()


async def test_servers_join_and_drain_with_the_token(make_gateway: MakeGateway) -> None:
    server = Stub()
    config = {"event_token": "shared", "replica_wait_seconds": 0.3}  # which runs out
    async with stubs(server), make_gateway(**config) as client:
        for token in (None, "wrong"):
            assert await announce(client, routes.EVENT_SERVER_STARTUP, server, token) == 401
        assert await announce(client, routes.EVENT_SERVER_STARTUP, server, "shared") == 200
        await client.ready()
        await client.complete()
        for token in (None, "wrong"):
            assert await announce(client, routes.EVENT_SERVER_SHUTDOWN, server, token) == 401
        server.state = ServerState.DRAINING
        assert await announce(client, routes.EVENT_SERVER_SHUTDOWN, server, "shared") == 200
        (replica,) = client.gateway.registry
        assert replica.state == "draining"
        assert (await client.post())[0] == 503
        server.state = ServerState.READY  # restarted
        assert await announce(client, routes.EVENT_SERVER_STARTUP, server, "shared") == 200
        await client.ready()


async def test_a_joined_server_that_left_is_forgotten(make_gateway: MakeGateway) -> None:
    server = Stub()
    async with stubs(server), make_gateway(event_token="shared", forget_joined_seconds=0.3) as client:
        await announce(client, routes.EVENT_SERVER_STARTUP, server, "shared")
        await client.ready()
        await server.kill()
        await client.post()
        await eventually(lambda: not list(client.gateway.registry))
        assert (await client.post())[0] == 404


async def test_without_a_token_events_are_hints(make_gateway: MakeGateway) -> None:
    server, stranger = Stub(), Stub()
    async with stubs(server, stranger), make_gateway([server]) as client:
        for route in (routes.EVENT_SERVER_STARTUP, routes.EVENT_SERVER_SHUTDOWN):
            # the answer does not tell which servers are configured
            assert await told(client, route, stranger) == await told(client, route, server)
        assert len(list(client.gateway.registry)) == 1 and not stranger.probes
        probes = server.probes
        assert await announce(client, routes.EVENT_SERVER_SHUTDOWN, server) == 200  # but it lives
        await eventually(lambda: server.probes > probes)
        assert (await client.post())[0] == 200
        server.state = ServerState.DRAINING
        await announce(client, routes.EVENT_SERVER_SHUTDOWN, server)
        (replica,) = client.gateway.registry
        await eventually(lambda: replica.state == "draining")


# --- the OpenAPI document


async def test_the_document_shows_every_route(make_gateway: MakeGateway) -> None:
    async with make_gateway() as client, client.session.get("/openapi.json") as response:
        paths = set((await response.json())["paths"])
    names = [name for name in vars(routes) if name.isupper() and name not in ("MODEL_ID", "REQUESTS")]
    assert {getattr(routes, name) for name in names} <= paths
    assert "/requests/{request_id}" in paths


def test_answers_keep_to_the_document() -> None:
    """Schemathesis makes up requests from the document and checks every answer against it."""
    config = GatewayConfig.model_validate({"replica_wait_seconds": 0, "event_token": "shared"})
    with serving(create_app(config)) as url:
        schema = schemathesis.openapi.from_url(url + "/openapi.json")
        for result in schema.get_all_operations():
            check_operation(result.ok())


def check_operation(operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: Any) -> None:
        # 503 is what a gateway without servers says; 500 is not in any answer of ours
        response = case.call_and_validate(excluded_checks=[schemathesis.checks.not_a_server_error])
        assert response.status_code != 500

    check()


async def test_every_answer_names_its_request(make_gateway: MakeGateway) -> None:
    async with make_gateway() as client:
        for path in ("/health", "/status", "/v1/models", "/nowhere"):
            async with client.session.get(path) as response:
                assert len(response.headers["x-request-id"]) == 24
            async with client.session.get(path, headers={"x-request-id": "mine"}) as response:
                assert response.headers["x-request-id"] == "mine"
            async with client.session.get(path, headers={"x-request-id": "a b"}) as response:
                assert response.status == 400 and response.headers["x-request-id"] != "a b"


async def test_a_stream_says_how_its_text_is_encoded(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        body = {"model": "m", "prompt": "p", "stream": True}
        async with client.session.post("/v1/completions", json=body) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
