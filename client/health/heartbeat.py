"""Probes every server: at intervals while it is well, sooner while it is not.

Each replica has a task of its own, so that a dead server delays no other. When to ask next is a pure
function; what the answer means is up to `Registry`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp.hdrs import AUTHORIZATION

from client.health.config import HealthConfig
from client.health.probing import Unfit, probe
from client.health.replica import Replica, ReplicaState
from client.health.replicas import Registry
from client.upstream.classify import describe
from client.upstream.session import connect_timeout, read_whole
from protocol.routes import METRICS
from utils.background import repeat

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.5
GROWTH = 1.5
MAX_GROWTHS = 64
"""Failed probes after which the pause grows no more: the power of a count without an end overflows."""
PROOF_DELAY = 0.2
"""Pause between the two good probes that bring a server back."""
JITTER = 0.1
"""Share by which pauses vary, so that gateways do not ask in step."""
MAX_STATUS_BYTES = 2**20
MAX_METRICS_BYTES = 2**23


def next_delay(replica: Replica, failures: int, config: HealthConfig, chance: float) -> float:
    """Seconds until `replica` is asked again.

    Args:
        failures: probes in a row that did not find it ready.
        chance: uniform in [0, 1).
    """
    if replica.state is ReplicaState.READY:
        delay = config.heart_beat_interval_seconds
        if replica.load.leases or replica.load.picks != replica.probed_picks:
            delay = min(delay, config.busy_heart_beat_interval_seconds)
    elif replica.proofs:
        delay = PROOF_DELAY
    else:
        longest = min(config.recovery_probe_max_seconds, config.heart_beat_interval_seconds)
        delay = min(FIRST_DELAY * GROWTH ** min(max(0, failures - 1), MAX_GROWTHS), longest)
    return delay * (1.0 + JITTER * (2.0 * chance - 1.0))


@dataclass(slots=True)
class _Probing:
    """The task that asks one replica."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to ask without waiting for the next turn."""
    failures: int = 0
    """Probes in a row that did not find the replica ready."""
    task: asyncio.Task[None] | None = None


class Heartbeats:
    """Keeps `registry` informed.

    Args:
        config: the one in use; a reload may put another in its place.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        registry: Registry,
        config: Callable[[], HealthConfig],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._session = session
        self._registry = registry
        self._clock = clock
        self._probing: dict[Replica, _Probing] = {}

    def start(self) -> None:
        """Ask all replicas now, and any that joins as it comes."""
        self._registry.listeners.append(self._on_change)
        for replica in self._registry:
            self._on_change(replica)

    async def stop(self) -> None:
        self._registry.listeners.remove(self._on_change)
        tasks = [probing.task for probing in self._probing.values() if probing.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def probe_now(self, replica: Replica) -> None:
        """Probe `replica` without waiting for its interval."""
        if probing := self._probing.get(replica):
            probing.wake.set()

    def _on_change(self, replica: Replica) -> None:
        probing = self._probing.get(replica)
        if replica not in self._registry:
            if probing is not None and probing.task is not None:
                del self._probing[replica]
                probing.task.cancel()
        elif probing is None:
            probing = self._probing[replica] = _Probing()
            loop = repeat(f"the heartbeat of {replica.url}", lambda: self._round(replica, probing))
            probing.task = asyncio.create_task(loop)
        elif replica.state in (ReplicaState.SUSPECT, ReplicaState.DOWN):
            probing.wake.set()

    async def _round(self, replica: Replica, probing: _Probing) -> None:
        """Probe `replica`, and wait until the next probe."""
        picks = replica.load.picks
        before = replica.state
        fault: Exception | None = None
        try:
            await self._probe(replica)
        except Exception as error:  # a fault of this program, on what this replica alone said
            self._registry.unfit(replica, f"its status could not be taken: {describe(error)}")
            fault = error
        replica.probed_picks = picks
        if replica.state is not before:
            logger.info("%s: %s (%s)", replica.url, replica.state, replica.reason)
        probing.failures = 0 if replica.state is ReplicaState.READY else probing.failures + 1
        if self._is_gone(replica):
            self._registry.remove(replica)  # which ends this task
        if fault is not None:
            raise fault
        probing.wake.clear()
        await self._pause(replica, probing)

    def _is_gone(self, replica: Replica) -> bool:
        """Whether it joined by itself and is lost for good; configured ones are always asked again."""
        away = replica.joined == "event" and replica.state is ReplicaState.DOWN
        return away and self._clock() - replica.since > self._config().forget_joined_seconds

    async def _pause(self, replica: Replica, probing: _Probing) -> None:
        """Wait until it is time to ask again, which is sooner once the replica is given work."""
        asked_at, chance = self._clock(), random.random()
        while not probing.wake.is_set():
            config = self._config()
            left = asked_at + next_delay(replica, probing.failures, config, chance) - self._clock()
            if left <= 0.0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    probing.wake.wait(), min(left, config.busy_heart_beat_interval_seconds)
                )

    async def _probe(self, replica: Replica) -> None:
        """Probe once and update the registry."""
        probed_at, config = self._clock(), self._config()
        connecting = connect_timeout(config.connect_timeout_seconds)
        secret = replica.credentials(config.server_key)
        headers = None if secret is None else {AUTHORIZATION: secret}

        async def ask(route: str) -> tuple[int, bytes]:
            url = replica.url_of(route)
            async with self._session.get(
                url, headers=headers, allow_redirects=False, timeout=connecting
            ) as response:
                limit = MAX_METRICS_BYTES if route == METRICS else MAX_STATUS_BYTES
                return response.status, await read_whole(response, limit)

        try:
            async with asyncio.timeout(config.heart_beat_timeout_seconds):
                report = await probe(replica, ask)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._registry.refused(replica, describe(error))
        except TimeoutError:
            self._registry.missed(replica, probed_at)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # the last: no name of a host
            self._registry.refused(replica, describe(error))
        except Unfit as error:
            self._registry.unfit(replica, str(error))
        else:
            self._registry.reported(replica, report)
