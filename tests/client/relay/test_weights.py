"""A stream goes on only where the weights are those that it was begun with."""

from __future__ import annotations

import asyncio
import logging

import pytest

from client.health.replicas import Registry
from client.health.report import Report
from protocol.status import ServerLoad, ServerState, ServerStatus
from tests.client.conftest import GatewayClient, MakeGateway
from tests.client.stub import BUSY, Stub, stubs
from tests.serving import eventually


def resumed(server: Stub) -> list[dict[str, object]]:
    return [call.body["resume"] for call in server.calls if "resume" in call.body]


async def test_a_server_with_the_same_weights_goes_on(make_gateway: MakeGateway) -> None:
    first, peer = Stub(weights="a"), Stub(weights="a", others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        expected = await client.stream()
        first.die_after = 3
        assert await client.stream() == expected
        assert [record["weights"] for record in resumed(peer)] == ["a"]


async def test_a_server_with_other_weights_does_not(make_gateway: MakeGateway) -> None:
    """The stream waits for the one that it came from, which was lost a moment ago."""
    first, other = Stub(weights="a"), Stub(weights="b", others=BUSY)
    async with stubs(first, other), make_gateway([first, other]) as client:
        expected = await client.stream()
        first.die_after = 3
        assert await client.stream() == expected
        assert resumed(first) and not other.calls
        # a request that has not begun is for either
        await first.kill()
        assert await client.complete() and len(other.calls) == 1


async def test_a_stream_that_no_server_can_continue_ends_with_an_error(make_gateway: MakeGateway) -> None:
    first, other = Stub(weights="a", seconds_per_token=0.02), Stub(weights="b", others=BUSY)
    async with stubs(first, other), make_gateway([first, other], replica_wait_seconds=0.2) as client:
        client.gateway.settings.config = client.gateway.settings.config.model_copy(
            update={"stream_wait_seconds": 0.2}
        )
        stream = asyncio.create_task(client.stream(tokens=60))
        await eventually(lambda: client.gateway.metrics.tokens > 2)
        await first.kill()
        events = (await stream).split(b"\n\n")
        assert events[-2].startswith(b"event: error\n") and not other.calls


async def test_a_server_that_changed_its_weights_unseen_refuses(make_gateway: MakeGateway) -> None:
    """Between two heartbeats the gateway believes it to have those of before."""
    first, peer = Stub(weights="a"), Stub(weights="a", others=BUSY)
    calm = {"heart_beat_interval_seconds": 60, "busy_heart_beat_interval_seconds": 60}
    async with stubs(first, peer), make_gateway([first, peer], **calm) as client:
        expected = await client.stream()
        peer.weights = "b"
        first.die_after = 3
        assert await client.stream() == expected
        known = client.gateway.registry.get(peer.kind, peer.url)
        assert known is not None and known.fingerprint == "b"  # which it was asked for then


async def test_the_weights_are_those_of_the_answer(make_gateway: MakeGateway) -> None:
    """Not those that the server had when it was last asked."""
    # tokens that come one by one are read one by one, and no slow answer passes for none
    first, old = Stub(weights="a", seconds_per_token=0.01), Stub(weights="a", others=BUSY)
    calm = {"heart_beat_interval_seconds": 60, "busy_heart_beat_interval_seconds": 60}
    calm["heart_beat_timeout_seconds"] = 10
    async with stubs(first, old), make_gateway([first, old], **calm) as client:
        first.weights = "b"
        first.die_after = 3
        await client.stream()
        assert [record["weights"] for record in resumed(first)] == ["b"] and not resumed(old)


@pytest.mark.parametrize(("begun", "continued"), [(None, "a"), ("a", None), (None, None)])
async def test_servers_that_do_not_tell_are_trusted(
    make_gateway: MakeGateway, begun: str | None, continued: str | None
) -> None:
    first, peer = Stub(weights=begun), Stub(weights=continued, others=BUSY)
    async with stubs(first, peer), make_gateway([first, peer]) as client:
        expected = await client.stream()
        first.die_after = 3
        assert await client.stream() == expected
        (record,) = resumed(peer)
        assert "weights" not in record  # an older server would refuse it


async def test_a_whole_answer_is_of_one_server_s_weights(make_gateway: MakeGateway) -> None:
    """Where a stream of it was cut it is asked for anew of a server with other weights, and whole."""
    first, other = Stub(weights="a"), Stub(weights="b", others=BUSY)
    async with stubs(first, other), make_gateway([first, other]) as client:
        first.die_after = other.die_after = 0
        request = asyncio.create_task(client.complete(tokens=12))
        await eventually(lambda: first.die_after is None)
        first.die_after = 3
        assert (await request)["usage"]["completion_tokens"] == 12
        streams = [call for call in first.calls if call.body.get("stream")]
        assert streams and first.die_after is None, "no stream was cut"
        assert not [call for call in other.calls if "stream" in call.body]


async def other_weights(client: GatewayClient) -> dict[str, tuple[str | None, bool]]:
    async with client.session.get("/status") as response:
        replicas = (await response.json())["replicas"]
    return {replica["url"]: (replica["fingerprint"], replica["other_weights"]) for replica in replicas}


async def test_servers_with_different_weights_are_shown_as_such(make_gateway: MakeGateway) -> None:
    one, two, unknown, elsewhere = Stub(weights="a"), Stub(weights="b"), Stub(), Stub(model="n", weights="c")
    servers = (one, two, unknown, elsewhere)
    async with stubs(*servers), make_gateway(servers) as client:
        assert await other_weights(client) == {
            one.url: ("a", True),
            two.url: ("b", True),
            unknown.url: (None, False),
            elsewhere.url: ("c", False),
        }
        two.weights = "a"
        known = client.gateway.registry.get(two.kind, two.url)
        assert known is not None
        client.gateway.heartbeats.probe_now(known)
        await eventually(lambda: known.fingerprint == "a")
        assert not any(differ for _, differ in (await other_weights(client)).values())


def test_different_weights_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry(lambda: 0.0)
    replicas = [registry.join("continuous_batching", f"http://h:{port}", "config") for port in (1, 2, 3)]

    def report(weights: list[str]) -> None:
        for replica, fingerprint in zip(replicas, weights, strict=True):
            status = ServerStatus(
                service="continuous_batching",
                state=ServerState.READY,
                model_id="m",
                version="0",
                uptime_seconds=0.0,
                load=ServerLoad(),
                fingerprint=fingerprint,
            )
            registry.reported(replica, Report.of(status))

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            report(["a", "a", "b"])
        assert len(caplog.records) == 1
        assert "http://h:1 and http://h:3 serve 'm' with different weights" in caplog.text
        report(["a", "c", "c"])
    assert len(caplog.records) == 3  # a with c, and c with the b that was still believed to be there
