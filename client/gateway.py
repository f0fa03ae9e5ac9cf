"""All parts of one gateway, wired together; what the HTTP side works with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from client.config import GatewayConfig, Settings
from client.drain import Drain
from client.heartbeat import Heartbeats
from client.metrics import Metrics
from client.openai_jumper import Jumpers
from client.relay import Relay
from client.reload import ConfigFile
from client.replicas import Registry
from client.reply import Reply
from client.request import InferenceRequest
from client.router import Router
from client.upstream import open_session
from client.watch import Watch, Watchman
from protocol.errors import ApiError, unavailable
from protocol.routes import CHAT_COMPLETION_V1, OPENAI_CHAT_COMPLETIONS, OPENAI_COMPLETIONS
from utils.garbage import tame_collector

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
        self.router = Router(self.registry, self.settings, clock, self._accounts_models)
        self.watchman = Watchman(clock)
        self.draining = False
        """Refuse new requests; those in flight finish."""
        self.configure(config)

    def configure(self, config: GatewayConfig) -> None:
        """Work by `config` from now on; what is in flight finishes as it began."""
        self.settings.config = config
        self.registry.configure(config.servers())
        self.jumpers.configure(config.openai_jumper_configs)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connections, heartbeats, clocks and signals, while the block lasts."""
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(open_session())
            stack.push_async_callback(self.jumpers.close)
            self.relay = Relay(session, self.settings, self.registry, self.router, self.metrics, self.clock)
            self.heartbeats = Heartbeats(session, self.registry, self.settings, self.clock)
            self.heartbeats.start()
            stack.push_async_callback(self.heartbeats.stop)
            await stack.enter_async_context(_in_background(self.watchman.run()))
            if self.config_file is not None:
                await stack.enter_async_context(_in_background(self.config_file.follow(self.configure)))
            if self._drain_on_signals:
                Drain(self).take_signals()
            tame_collector()
            yield

    async def answer(self, request: InferenceRequest, watch: Watch, reply: Reply) -> None:
        """Answer `request` on `reply` by a server or an OpenAI account.

        Raises:
            ApiError: nobody could.
            ClientGone: the client left.
            ClientStalled: the client stopped reading.
        """
        if request.route == CHAT_COMPLETION_V1 or (
            request.route in JUMPER_ROUTES
            and self.jumpers.serves(request.model)
            and not self.router.serves(request)
        ):
            await self.jumpers.answer(request, watch, reply)
        else:
            await self.relay.answer(request, watch, reply)

    def _accounts_models(self, request: InferenceRequest) -> list[str]:
        return self.jumpers.models() if request.route in JUMPER_ROUTES else []

    # the end, see `drain.Drained`

    def begin_drain(self) -> None:
        self.draining = True

    def idle(self) -> bool:
        return not self.watchman.watches

    def cut_short(self) -> None:
        for watch in list(self.watchman.watches):
            watch.give_up(shutting_down())

    def drain_timeout(self) -> float:
        return self.settings.config.drain_timeout_seconds


def shutting_down() -> ApiError:
    """503: try another gateway, or this one once it is back."""
    return unavailable("the gateway is shutting down", code="draining")


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
