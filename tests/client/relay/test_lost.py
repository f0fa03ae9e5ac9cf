"""Whether a server that broke off an answer is gone."""

from __future__ import annotations

import asyncio

import pytest

from client.health.replica import ReplicaState
from client.health.replicas import Registry
from client.relay import lost
from client.relay.lost import has_died


@pytest.mark.parametrize(
    ("state", "expected"),
    [(ReplicaState.DOWN, True), (ReplicaState.LOADING, True), (ReplicaState.READY, False)],
)
async def test_the_probe_tells(state: ReplicaState, expected: bool) -> None:
    registry = Registry(asyncio.get_running_loop().time)
    replica = registry.join("continuous_batching", "http://a", "config")
    replica.state = ReplicaState.READY
    registry.suspect(replica, "broke off")
    asking = asyncio.create_task(has_died(registry, replica))
    await asyncio.sleep(0.01)
    assert not asking.done()
    registry._enter(replica, state, "probed")
    assert await asking == expected
    assert registry.listeners == []


async def test_who_does_not_answer_the_probe_may_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost, "PROBE_SECONDS", 0.01)
    registry = Registry(asyncio.get_running_loop().time)
    replica = registry.join("continuous_batching", "http://a", "config")
    replica.state = ReplicaState.READY
    registry.suspect(replica, "broke off")
    assert not await has_died(registry, replica)
    assert registry.listeners == []
