"""Whether a server that broke off an answer is gone."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from client.health.replica import Replica, ReplicaState
from client.health.replicas import Registry

PROBE_SECONDS = 1.0
"""How long a request waits for the probe that tells."""


async def has_died(registry: Registry, replica: Replica) -> bool:
    """Whether `replica` is down, or a new process that loads; a suspect is being probed just now."""
    told = asyncio.Event()

    def listen(changed: Replica) -> None:
        if changed is replica:
            told.set()

    registry.listeners.append(listen)
    try:
        if replica.state is ReplicaState.SUSPECT:
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), PROBE_SECONDS)
    finally:
        registry.listeners.remove(listen)
    return replica.state in (ReplicaState.DOWN, ReplicaState.LOADING)
