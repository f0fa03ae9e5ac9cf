"""Announcing a server to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, Response

from protocol import routes
from protocol.events import ServerEvent
from server.api.announce import GatewayAnnouncer
from tests.serving import eventually, serving

EVENT = ServerEvent(url="http://here:1", service="static_batching", model_id="m")


class Gateway:
    """Accepts events, unless it is told to refuse them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ServerEvent, str | None]] = []
        self.status = 200
        self.app = FastAPI()
        for route in (routes.EVENT_SERVER_STARTUP, routes.EVENT_SERVER_SHUTDOWN):
            self.app.add_api_route(route, self._event, methods=["POST"])

    async def _event(self, request: Request) -> Response:
        event = ServerEvent.model_validate_json(await request.body())
        self.events.append((request.url.path, event, request.headers.get("authorization")))
        return Response("no such token", self.status)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def url(gateway: Gateway) -> Iterator[str]:
    with serving(gateway.app) as url:
        yield url


async def test_start_and_end_with_token(gateway: Gateway, url: str) -> None:
    announcer = GatewayAnnouncer(url, EVENT, "secret")
    await announcer.started()
    await eventually(lambda: len(gateway.events) == 1)
    await announcer.stopping()
    assert gateway.events == [
        (routes.EVENT_SERVER_STARTUP, EVENT, "Bearer secret"),
        (routes.EVENT_SERVER_SHUTDOWN, EVENT, "Bearer secret"),
    ]


async def test_announced_again_for_a_gateway_that_starts_anew(gateway: Gateway, url: str) -> None:
    announcer = GatewayAnnouncer(url, EVENT, None, interval=0.02)
    await announcer.started()
    await eventually(lambda: len(gateway.events) >= 3)
    await announcer.stopping()
    assert {token for _, _, token in gateway.events} == {None}


async def test_never_started_announces_no_end(gateway: Gateway, url: str) -> None:
    await GatewayAnnouncer(url, EVENT, None).stopping()
    assert gateway.events == []


async def test_refusal_is_told_once_and_without_the_token(
    gateway: Gateway, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.status = 401
    announcer = GatewayAnnouncer(url, EVENT, "secret", interval=0.02)
    await announcer.started()
    await eventually(lambda: len(gateway.events) >= 4)
    await announcer.stopping()
    told = [record.getMessage() for record in caplog.records if "announced" in record.getMessage()]
    assert len(told) == 1 and "401" in told[0]
    assert "secret" not in caplog.text


async def test_a_gateway_that_is_not_there_disturbs_nobody(unused_tcp_port: int) -> None:
    announcer = GatewayAnnouncer(f"http://127.0.0.1:{unused_tcp_port}", EVENT, None)
    await announcer.started()
    await asyncio.sleep(0.05)
    await announcer.stopping()
