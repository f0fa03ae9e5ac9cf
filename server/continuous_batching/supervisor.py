"""Keeps an engine process running and carries messages to and from it."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable

import zmq
import zmq.asyncio

from protocol.status import ServerState
from server.checkpoints.errors import ModelError
from server.continuous_batching import messages
from server.continuous_batching.endings import RANK_LOST_EXIT
from server.continuous_batching.phases import StartClock
from server.continuous_batching.restarts import Life, Restarts
from server.continuous_batching.spawned import SpawnedEngine
from server.continuous_batching.watchdog import (
    TICK_SECONDS,
    Watchdog,
    default_step_timeout,
    is_stopped,
)
from utils.messages import one_line

logger = logging.getLogger(__name__)

Parts = Callable[[], Iterable[bytes]]


class EngineRefusedError(Exception):
    """The engine cannot serve the model; the message is one line that says why."""


class EngineSupervisor:
    """Starts the engine process, and starts it again with growing pauses when it dies or is stuck.

    Args:
        on_ready: called when an engine (the first, or a new one) has loaded the model.
        on_report: called with each report.
        on_lost: called when an engine is gone, with all that it was doing, and with the state until
            there is a new one: loading, or failed where this one could not load.
        has_work: whether a request waits for the engine.
        spawned: the first engine, where it is there already; from now on this object's to end.

    Attributes:
        problem: why there is no working engine, in one line; None while there is one, or the first loads.
        start_clock: where the time of the last start went, or goes.
    """

    def __init__(
        self,
        on_ready: Callable[[messages.Ready], None],
        on_report: Callable[[messages.Report], None],
        on_lost: Callable[[ServerState], None],
        has_work: Callable[[], bool],
        spawned: SpawnedEngine | None = None,
    ) -> None:
        self.problem: str | None = None
        self.start_clock = StartClock("process") if spawned is None else spawned.start_clock
        self._on_ready = on_ready
        self._on_report = on_report
        self._on_lost = on_lost
        self._has_work = has_work
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._spawned = spawned
        self._engine: SpawnedEngine | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._parts: Parts
        self._step_timeout: float | None
        self._starts = 0

    @property
    def restarts(self) -> int:
        """How often the engine had to be started again."""
        return max(self._starts - 1, 0)

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return None if self._engine is None else self._engine.pid

    async def start(self, parts: Parts, step_timeout: float | None = None) -> None:
        """Start the first engine, unless it was given, and wait until it is ready.

        Args:
            parts: returns the startup data of a new engine (`start_pipe`).
            step_timeout: seconds after which a running step counts as stuck; None: the device's default.

        Raises:
            EngineRefusedError: it cannot serve the model, or died while loading.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts, self._step_timeout = parts, step_timeout
        self._keeper = asyncio.create_task(self._keep(first))
        await first

    def send(self, message: messages.ToEngine) -> None:
        """Hand a message to the engine; without one the message is dropped (`on_lost` was called)."""
        if self._socket is not None:
            self._socket.send(messages.encode(message))

    async def close(self) -> None:
        """End the process at once and free everything."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._spawned is not None:
            self._spawned.kill()
        self._context.destroy(linger=0)

    async def _keep(self, first: asyncio.Future[None]) -> None:
        """Start engine after engine; ends where the first one fails, or too many in a row cannot load."""
        restarts = Restarts()
        while True:
            life = Life()
            problem = await self._live(life, first)
            if not first.done():
                first.set_exception(EngineRefusedError(problem))
                return
            pause = restarts.pause_after(life)
            if pause is None:
                logger.error("the engine is not started again: it failed to load too often")
                self.problem = f"{problem} (given up after repeated attempts: restart the server)"
                return
            logger.info("starting the engine again in %g s", pause)
            await asyncio.sleep(pause)

    async def _live(self, life: Life, first: asyncio.Future[None]) -> str:
        """One life of the process, from its start until it is gone; returns why it ended."""
        self._starts += 1
        socket = self._context.socket(zmq.PAIR)
        try:
            problem = await self._attend(socket, life, first)
            self._lose(problem, life)  # first: a process within a driver may take its time to die
            return problem
        finally:
            self._socket = None
            socket.close(linger=0)
            if self._engine is not None:
                self._engine.kill()
                await self._engine.ended()
                self._engine = None

    def _lose(self, problem: str, life: Life) -> None:
        if life.loaded or self.restarts:  # a first engine that cannot load is an error of `start`
            logger.error("%s", problem)
        self.problem, self._socket = problem, None
        try:
            self._on_lost(ServerState.LOADING if life.loaded else ServerState.FAILED)
        except Exception:
            logger.exception("the loss of the engine could not be handled")

    async def _attend(self, socket: zmq.asyncio.Socket, life: Life, first: asyncio.Future[None]) -> str:
        """Start a process and take its messages for as long as it is well; returns why it is not."""
        try:
            engine, self._spawned = self._spawned or SpawnedEngine(), None
            self._engine, self.start_clock = engine, engine.start_clock
            engine.listen(socket)
            if engine.configured is None:
                engine.configure(self._parts())
            return await self._listen(engine, socket, life, first)
        except EngineRefusedError as error:
            return str(error)
        except Exception as error:  # of a message, a callback or the system: a new engine starts afresh
            logger.exception("the engine is given up")
            return f"the engine could not be supervised ({type(error).__name__}: {error})"

    async def _listen(
        self,
        engine: SpawnedEngine,
        socket: zmq.asyncio.Socket,
        life: Life,
        first: asyncio.Future[None],
    ) -> str:
        """Take messages until the process is gone or stuck; returns which."""
        watchdog = Watchdog()
        gone = asyncio.create_task(engine.ended())
        receiver = asyncio.create_task(self._receive(engine, socket, watchdog, life, first))
        watcher = asyncio.create_task(self._watch(engine.pid, watchdog))
        sender = asyncio.create_task(_send_failure(engine))
        tasks = (gone, receiver, watcher, sender)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not receiver.done():  # what it said last may still be on its way
                await asyncio.wait((receiver,), timeout=0.2)
            for each in (receiver, sender):
                if each.done():
                    each.result()  # raises
            return watcher.result() if watcher.done() else _ending(gone.result(), life)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(
        self,
        engine: SpawnedEngine,
        socket: zmq.asyncio.Socket,
        watchdog: Watchdog,
        life: Life,
        first: asyncio.Future[None],
    ) -> None:
        """Hand on what the engine says; ends by raising."""
        while True:
            message = messages.decode_from_engine(await socket.recv())
            if isinstance(message, messages.Report):
                watchdog.heard(message)
                life.served |= bool(message.output.done)
                self._on_report(message)
            elif isinstance(message, messages.Loading):
                self.start_clock.enter(message.phase, message.begun)
                engine.remove_socket()
            elif isinstance(message, messages.Refused):
                raise EngineRefusedError(message.message)
            else:
                life.loaded = True
                self.start_clock.enter(None)
                logger.info("the engine is ready after %.1f s", self.start_clock.told()["total_seconds"])
                device = message.capabilities["device"]
                watchdog.step_timeout = self._step_timeout or default_step_timeout(device)
                self._socket, self.problem = socket, None
                self._on_ready(message)
                if not first.done():
                    first.set_result(None)

    async def _watch(self, pid: int, watchdog: Watchdog) -> str:
        """Return once the engine is stuck, saying how."""
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            await asyncio.sleep(TICK_SECONDS)
            problem = watchdog.tick(loop.time() - begin, has_work=self._has_work(), stopped=is_stopped(pid))
            if problem is not None:
                return problem


async def _send_failure(engine: SpawnedEngine) -> None:
    """Raise if the engine's startup data cannot be read; never returns."""
    assert engine.configured is not None
    try:
        await asyncio.wrap_future(engine.configured)
    except (ModelError, OSError, ValueError) as error:
        raise EngineRefusedError(one_line(error)) from error
    await asyncio.Future()


def _ending(status: int, life: Life) -> str:
    """How a process ended, from its exit status."""
    if status == RANK_LOST_EXIT:
        how = "lost one of the ranks of its model; the log says which"
    elif status >= 0:
        how = f"ended with status {status}; the log says why"
    else:
        how = f"was killed by {signal.Signals(-status).name}"
    return (
        f"the engine process {how}" if life.loaded else f"while it loaded the model, the engine process {how}"
    )
