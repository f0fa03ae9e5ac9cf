"""Announcing a server to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, Response

from protocol import routes
from protocol.errors import forbidden
from protocol.events import EventAccepted, ServerEvent
from server.api.announce import GatewayAnnouncer
from tests.serving import eventually, serving

EVENT = ServerEvent(url="http://here:1", service="static_batching", model_id="m")


class Gateway:
    """Accepts events, unless it is told to refuse them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ServerEvent, str | None]] = []
        self.answer = Response(EventAccepted().model_dump_json())
        self.app = FastAPI()
        for route in (routes.EVENT_SERVER_STARTUP, routes.EVENT_SERVER_SHUTDOWN):
            self.app.add_api_route(route, self._event, methods=["POST"])

    async def _event(self, request: Request) -> Response:
        event = ServerEvent.model_validate_json(await request.body())
        self.events.append((request.url.path, event, request.headers.get("authorization")))
        return self.answer


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
    gateway.answer = Response("no such token", 401)
    announcer = GatewayAnnouncer(url, EVENT, "secret", interval=0.02)
    await announcer.started()
    await eventually(lambda: len(gateway.events) >= 4)
    await announcer.stopping()
    told = [record.getMessage() for record in caplog.records if "announced" in record.getMessage()]
    assert len(told) == 1 and "401" in told[0]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("said", [b"\xff\xfe", b"x" * 10_000_000], ids=["undecodable", "long"])
async def test_what_a_gateway_says_does_not_end_the_announcing(
    gateway: Gateway, url: str, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.answer = Response(said, 500, media_type="text/plain; charset=bogus")
    announcer = GatewayAnnouncer(url, EVENT, None, interval=0.02)
    await announcer.started()
    await eventually(lambda: len(gateway.events) >= 4)
    await announcer.stopping()
    assert "Traceback" not in caplog.text and len(caplog.text) < 5000


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "\uffff"])
async def test_a_name_that_no_gateway_can_have_does_not_stop_a_shutdown(host: str) -> None:
    announcer = GatewayAnnouncer(f"http://{host}:1", EVENT, None)
    await announcer.started()
    await asyncio.sleep(0.05)
    await announcer.stopping()


async def test_a_gateway_that_is_not_there_does_no_harm(unused_tcp_port: int) -> None:
    announcer = GatewayAnnouncer(f"http://127.0.0.1:{unused_tcp_port}", EVENT, None)
    await announcer.started()
    await asyncio.sleep(0.05)
    await announcer.stopping()


REFUSAL = forbidden("http://here:1 is not configured").body.model_dump_json()


@pytest.mark.parametrize(
    ("answer", "state", "problem"),
    [
        (Response(EventAccepted().model_dump_json()), "accepted", None),
        (Response(EventAccepted(trusted=False).model_dump_json()), "unconfirmed", "no event_token"),
        (Response(f'{{"error": {REFUSAL}}}', 403), "refused", "status 403: http://here:1 is not configured"),
        (Response(status_code=429), "refused", "status 429"),
        (Response(status_code=503), "failed", "status 503"),
        (Response("<html>Welcome</html>"), "refused", "status 200: not the answer of a gateway: '<html>"),
        (Response(b"\xff\xfe" * 500, 500), "failed", "status 500: not the answer of a gateway"),
        (Response(status_code=302, headers={"location": "/"}), "refused", "status 302"),
    ],
)
async def test_what_became_of_it_is_kept(
    gateway: Gateway, url: str, answer: Response, state: str, problem: str | None
) -> None:
    gateway.answer = answer
    announcer = GatewayAnnouncer(url, EVENT, None)
    assert announcer.announcement.state == "pending"
    await announcer.started()
    await eventually(lambda: announcer.announcement.state != "pending")
    await announcer.stopping()
    said = announcer.announcement
    assert (said.state, said.gateway, said.server) == (state, url, EVENT.url)
    assert said.problem is None if problem is None else problem in (said.problem or "")


async def test_a_gateway_that_is_not_there_is_kept_too(unused_tcp_port: int) -> None:
    announcer = GatewayAnnouncer(f"http://127.0.0.1:{unused_tcp_port}", EVENT, None)
    await announcer.started()
    await eventually(lambda: announcer.announcement.state == "failed")
    await announcer.stopping()
