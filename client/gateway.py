"""All parts of one gateway, wired together; what the HTTP side works with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from client.accounts.openai_jumper import Jumpers
from client.config import GatewayConfig, Settings
from client.health.heartbeat import Heartbeats
from client.health.replicas import Registry
from client.metrics.counters import Metrics
from client.relay.relay import Relay
from client.reload import ConfigFile
from client.requests.deadline import Deadline, Deadlines
from client.requests.reply import Reply
from client.requests.request import InferenceRequest
from client.routing.router import NO_REPLICA, Router
from client.upstream.session import open_session
from protocol.errors import ApiError, unavailable
from protocol.routes import CHAT_COMPLETION_V1, OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS
from utils.background import in_background
from utils.bodies import Bodies
from utils.drain import Drain
from utils.garbage import tame_collector

LOOK_SECONDS = 0.05
"""How often a gateway that drains looks whether requests are in flight."""

JUMPER_ROUTES = (OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS)


class Gateway:
    """One gateway; `running` brings it to life.

    Args:
        config_file: where `config` came from and may change; None for a fixed configuration.
        drain_on_signals: on SIGTERM and SIGINT let what is in flight finish.
        clock: monotonic seconds.
    """

    relay: Relay
    heartbeats: Heartbeats

    def __init__(
        self,
        config: GatewayConfig,
        config_file: ConfigFile | None = None,
        *,
        drain_on_signals: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drain_on_signals = drain_on_signals
        self.settings = Settings(config)
        self.config_file = config_file
        self.clock = clock
        self.started_at = clock()
        self.registry = Registry(clock)
        self.metrics = Metrics(clock)
        self.jumpers = Jumpers(self.settings, self.metrics, clock)
        self.router = Router(self.registry, self._current, clock, self._accounts_models)
        self.deadlines = Deadlines(clock)
        self.bodies = Bodies(self._current, clock, lambda: self.settings.config.client_timeout_seconds)
        self.draining = False
        """Refuse new requests; those in flight finish."""
        self.configure(config)

    def _current(self) -> GatewayConfig:
        return self.settings.config

    def configure(self, config: GatewayConfig) -> None:
        """Use `config` from now on; requests in flight keep the old one.

        Raises:
            ConfigError: it cannot be used; nothing has changed then.
        """
        self.jumpers.configure(config)
        self.settings.config = config
        self.registry.configure(config.servers())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connections, heartbeats, clocks and signals, while the block lasts."""
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(open_session())
            stack.push_async_callback(self.jumpers.close)
            self.relay = Relay(session, self.settings, self.registry, self.router, self.metrics, self.clock)
            self.heartbeats = Heartbeats(session, self.registry, self._current, self.clock)
            self.heartbeats.start()
            stack.push_async_callback(self.heartbeats.stop)
            await stack.enter_async_context(in_background("the look at deadlines", self.deadlines.look))
            if self.config_file is not None:
                await stack.enter_async_context(self.config_file.following(self.configure))
            if self._drain_on_signals:
                Drain(self).take_signals()
            tame_collector()
            yield

    async def answer(self, request: InferenceRequest, deadline: Deadline, reply: Reply) -> None:
        """Answer `request` on `reply` by a server, or by an OpenAI account where no server is ready.

        Raises:
            ApiError: none could.
            ClientGone: the client left.
            ClientStalled: the client stopped reading.
        """
        if request.route == CHAT_COMPLETION_V1:
            return await self.jumpers.answer(request, deadline, reply)
        if request.route not in JUMPER_ROUTES or not self.jumpers.serves(request.model):
            return await self.relay.answer(request, deadline, reply)
        spare = self.jumpers.available(request.model)
        if not (self.router.ready(request) if spare else self.router.serves(request)):
            return await self.jumpers.answer(request, deadline, reply)
        try:
            return await self.relay.answer(request, deadline, reply, waits=not spare)
        except ApiError as error:
            if error.body.code != NO_REPLICA or reply.status or not self.jumpers.available(request.model):
                raise
        return await self.jumpers.answer(request, deadline, reply)  # its last server was lost meanwhile

    def _accounts_models(self, request: InferenceRequest) -> list[str]:
        return self.jumpers.models() if request.route in JUMPER_ROUTES else []

    # the end, see `utils.drain.Drained`

    async def finish(self) -> None:
        self.draining = True
        while self.deadlines.in_flight:  # noqa: ASYNC110  # no request pays for telling of its end
            await asyncio.sleep(LOOK_SECONDS)

    async def cut_short(self) -> None:
        for deadline in list(self.deadlines.in_flight):
            deadline.give_up(shutting_down())

    def drain_timeout(self) -> float:
        return self.settings.config.drain_timeout_seconds


def shutting_down() -> ApiError:
    """503: this gateway is shutting down."""
    return unavailable("the gateway is shutting down", code="draining")
