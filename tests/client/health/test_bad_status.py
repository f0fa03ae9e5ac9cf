"""Servers that answer a heartbeat with nonsense, or not at all: each is out by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest

from client.health.replica import Replica
from protocol.status import ServerLoad, ServerState, ServerStatus
from tests.client.calls import text_of, tokens_of
from tests.client.conftest import MakeGateway
from tests.client.faults import OK_HEAD
from tests.client.stub import BUSY, Stub, stubs
from tests.serving import eventually


async def test_nonsense_in_place_of_a_heartbeat_takes_a_server_out(make_gateway: MakeGateway) -> None:
    first, peer = Stub(raw_status=OK_HEAD + b"Content-Length: 4\r\n\r\nnull"), Stub()
    async with stubs(first, peer), make_gateway() as client:
        registry = client.gateway.registry
        registry.configure([("continuous_batching", s.url) for s in (first, peer)])
        await client.ready(1)
        replica = registry.get("continuous_batching", first.url)
        assert replica is not None
        await eventually(lambda: replica.state == "down")
        assert "something else" in replica.reason


CAPACITY = {"max_beams": 8, "max_waiting": 8, "model_max_length": 64}


@pytest.mark.parametrize(
    "says",
    [
        {"capacity": CAPACITY | {"max_beams": 0}},
        {"capacity": CAPACITY | {"max_beams": -1}},
        {"capacity": CAPACITY | {"max_beams": 10**300}},
        {"capacity": CAPACITY | {"max_beams": "many"}},
        {"capacity": CAPACITY | {"max_waiting": -1}},
        {"capacity": {}},
        {"load": {"pending_tokens": -(10**300)}},
        {"load": {"pending_tokens": 10**400}},
        {"load": {"running": -1}},
        {"load": {"running": 10**300, "waiting": 10**300}},
        {"load": {"kv_cache_usage": math.nan}},
        {"load": {"tokens_per_second": math.inf}},
        {"load": None},
        {"uptime_seconds": math.nan},
        {"model_id": ""},
        {"model_id": "m" * 100_000},
        {"model_id": 7},
        {"state": "sleeping"},
        {"version": "1" * 100_000},
    ],
    ids=lambda says: str(says)[:60],
)
async def test_what_one_server_says_of_itself_harms_no_other(
    make_gateway: MakeGateway, says: dict[str, Any]
) -> None:
    odd, peer = Stub(), Stub(others=BUSY)
    async with stubs(odd, peer), make_gateway([odd, peer]) as client:
        replica = client.gateway.registry.get("continuous_batching", odd.url)
        assert replica is not None
        odd.says = says
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.state == "down")
        assert next(iter(says)) in replica.reason and len(replica.reason) < 1000
        await client.complete("x", 5)
        assert not odd.calls
        for path in ("/status", "/metrics", "/v1/models", "/status/history"):
            async with client.session.get(path) as response:
                assert response.status == 200, await response.text()
        odd.says = {}
        await client.ready(2)


def status_of_size(length: int) -> bytes:
    return OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (length, b" " * length)


@pytest.mark.parametrize(
    "raw",
    [
        OK_HEAD + b"Content-Length: 6\r\n\r\n" + '{"a"'.encode("utf-16")[:6],
        OK_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00",
        OK_HEAD + b"Content-Length: 99999999999\r\n\r\n{",
        OK_HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n{",
        OK_HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        status_of_size(2 * 2**20),
        OK_HEAD + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 700 X\r\nContent-Length: 0\r\n\r\n",
        OK_HEAD + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
    ids=["charset", "gzip", "huge", "length", "lengths", "endless", "nested", "status", "header"],
)
async def test_no_status_ends_the_asking(make_gateway: MakeGateway, raw: bytes) -> None:
    odd, peer = Stub(), Stub()
    async with stubs(odd, peer), make_gateway([odd, peer]) as client:
        replica = client.gateway.registry.get("continuous_batching", odd.url)
        assert replica is not None
        odd.raw_status = raw
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.state == "down")
        await client.complete("x", 5)
        odd.raw_status = None
        await client.ready(2)


STATUS = ServerStatus(
    service="continuous_batching",
    state=ServerState.READY,
    model_id="m",
    version="0",
    uptime_seconds=1.0,
    load=ServerLoad(),
)
BODY = STATUS.model_dump_json().encode()
HALF = len(BODY) // 2


@pytest.mark.parametrize(
    "raw",
    [
        OK_HEAD + b"\r\n" + BODY,
        OK_HEAD + b"Connection: close\r\n\r\n" + BODY,
        OK_HEAD.replace(b"1.1", b"1.0") + b"\r\n" + BODY,
        OK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        OK_HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n"
        % (HALF, BODY[:HALF], len(BODY) - HALF, BODY[HALF:]),
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK_HEAD + b"\r\n" + BODY,
    ],
    ids=["no length", "close", "1.0", "chunked", "chunks", "no type", "continue"],
)
async def test_a_status_in_any_framing_is_one(make_gateway: MakeGateway, raw: bytes) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        (replica,) = client.gateway.registry
        server.raw_status = raw
        before = replica.report_at
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.report_at > before or replica.state == "down")
        assert replica.state == "ready", replica.reason


async def test_a_server_of_the_other_kind_is_not_used(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub(kind="static_batching")), make_gateway() as client:
        replica = client.gateway.registry.join("continuous_batching", server.url, "event")
        await eventually(lambda: replica.state == "down")
        assert replica.reason == "is a static_batching server"


async def test_a_server_with_another_model_than_before(make_gateway: MakeGateway) -> None:
    first, peer = Stub(), Stub(others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        first.model = "other"
        assert (await client.complete("x", 5))["choices"][0]["text"] == text_of(tokens_of("x", 5))
        await eventually(lambda: client.gateway.registry.models() == ["m", "other"])
        await client.complete("x", 5, model="other")
        peer.model = "other"
        await eventually(lambda: bool(peer.calls))
        status, _, body = await client.post("x", 5)
        assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_a_name_that_does_not_resolve(make_gateway: MakeGateway) -> None:
    async with stubs(server := Stub()):
        urls = ["http://nowhere.invalid:8001", server.url]
        async with make_gateway(continuous_batching_server_urls=urls) as client:
            await client.ready(1)
            await client.complete()
            lost = client.gateway.registry.get("continuous_batching", urls[0])
            assert lost is not None
            await eventually(lambda: lost.state == "down")


async def test_a_fault_in_one_server_s_heartbeat_is_its_own(
    make_gateway: MakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nothing foresaw takes this server out; it is asked on and comes back."""
    first, peer = Stub(), Stub()
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        registry = client.gateway.registry
        replica = registry.get("continuous_batching", first.url)
        assert replica is not None

        def stumble(changed: Replica) -> None:
            if changed is replica:
                raise ZeroDivisionError("a fault")

        registry.listeners.append(stumble)
        first.state = ServerState.LOADING
        client.gateway.heartbeats.probe_now(replica)
        await eventually(lambda: replica.state == "down")
        await client.complete("x", 5)
        assert not first.calls
        registry.listeners.remove(stumble)
        first.state = ServerState.READY
        await client.ready(2)
        assert caplog.text.count("ZeroDivisionError: a fault") >= 1


@pytest.mark.parametrize("host", ["a" * 64, "a.." + "b" * 70])
async def test_a_host_whose_name_cannot_be_looked_up(make_gateway: MakeGateway, host: str) -> None:
    async with stubs(server := Stub()), make_gateway([server]) as client:
        replica = client.gateway.registry.join("continuous_batching", f"http://{host}.invalid:1", "event")
        await eventually(lambda: replica.state == "down")
        await client.complete("x", 5)
