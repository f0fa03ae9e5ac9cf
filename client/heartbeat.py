"""Asks every server how it is: in turn while it is well, soon again while it is not.

Each replica has a task of its own, so a dead server delays nobody. When to ask next is a pure
function; what the answer means is up to `Registry`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

import aiohttp
from pydantic import ValidationError

from client.classify import describe
from client.config import GatewayConfig, Settings
from client.replicas import Registry, Replica, ReplicaState
from client.upstream import connect_timeout
from protocol.routes import STATUS
from protocol.status import ServerStatus

logger = logging.getLogger(__name__)

FIRST_DELAY = 0.5
PROOF_DELAY = 0.2
"""Pause between the two good probes that bring a server back."""
JITTER = 0.1
"""Share by which pauses vary, so that gateways do not ask in step."""
MAX_STATUS_BYTES = 2**20


def next_delay(replica: Replica, failures: int, config: GatewayConfig, chance: float) -> float:
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
        delay = min(FIRST_DELAY * 1.5 ** max(0, failures - 1), longest)
    return delay * (1.0 + JITTER * (2.0 * chance - 1.0))


class Heartbeats:
    """Keeps `registry` informed.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        registry: Registry,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._session = session
        self._registry = registry
        self._clock = clock
        self._tasks: dict[Replica, asyncio.Task[None]] = {}
        self._wake: dict[Replica, asyncio.Event] = {}

    def start(self) -> None:
        """Ask all replicas now, and any that joins as it comes."""
        self._registry.listeners.append(self._on_change)
        for replica in self._registry:
            self._on_change(replica)

    async def stop(self) -> None:
        self._registry.listeners.remove(self._on_change)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def probe_now(self, replica: Replica) -> None:
        """Do not wait for the next turn of `replica`."""
        if replica in self._wake:
            self._wake[replica].set()

    def _on_change(self, replica: Replica) -> None:
        if replica not in self._registry:
            self._wake.pop(replica, None)
            if task := self._tasks.pop(replica, None):
                task.cancel()
        elif replica not in self._tasks:
            self._wake[replica] = asyncio.Event()
            self._tasks[replica] = asyncio.create_task(self._keep_asking(replica))
        elif replica.state in (ReplicaState.SUSPECT, ReplicaState.DOWN):
            self._wake[replica].set()

    async def _keep_asking(self, replica: Replica) -> None:
        failures = 0
        wake = self._wake[replica]
        while True:
            picks = replica.load.picks
            before = replica.state
            await self._probe(replica)
            replica.probed_picks = picks
            if replica.state is not before:
                logger.info("%s: %s (%s)", replica.url, replica.state, replica.reason)
            failures = 0 if replica.state is ReplicaState.READY else failures + 1
            if self._is_gone(replica):
                self._registry.remove(replica)  # which ends this task
            wake.clear()
            await self._pause(replica, failures, wake)

    def _is_gone(self, replica: Replica) -> bool:
        """Whether it joined by itself and is lost for good; configured ones are asked for ever."""
        away = replica.joined == "event" and replica.state is ReplicaState.DOWN
        return away and self._clock() - replica.since > self._settings.config.forget_joined_seconds

    async def _pause(self, replica: Replica, failures: int, wake: asyncio.Event) -> None:
        """Wait until it is time to ask again, which is sooner once the replica is given work."""
        asked_at, chance = self._clock(), random.random()
        while not wake.is_set():
            config = self._settings.config
            left = asked_at + next_delay(replica, failures, config, chance) - self._clock()
            if left <= 0.0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), min(left, config.busy_heart_beat_interval_seconds))

    async def _probe(self, replica: Replica) -> None:
        """Ask once and tell the registry."""
        probed_at, config = self._clock(), self._settings.config
        connecting = connect_timeout(config.connect_timeout_seconds)
        try:
            async with (
                asyncio.timeout(config.heart_beat_timeout_seconds),
                self._session.get(
                    replica.url_of(STATUS),
                    allow_redirects=False,
                    timeout=connecting,
                ) as response,
            ):
                if (response.content_length or MAX_STATUS_BYTES + 1) > MAX_STATUS_BYTES:
                    raise aiohttp.ClientPayloadError("too long a status, or one of unknown length")
                status = ServerStatus.model_validate_json(await response.read())
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._registry.refused(replica, describe(error))
        except TimeoutError:
            self._registry.missed(replica, probed_at)
        except (aiohttp.ClientError, OSError) as error:
            self._registry.refused(replica, describe(error))
        except ValidationError:
            self._registry.unfit(replica, f"{STATUS} answers something else than a server's status")
        else:
            self._registry.reported(replica, status)
