"""The static-batching strategy as a `server.api.service.Service`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client import Metric

from protocol import __version__
from protocol.errors import ApiError, cancelled, queue_full, queue_timeout, unavailable, unprocessable
from protocol.status import ServerCapacity, ServerLoad, ServerState, ServerStatus, ServiceKind
from protocol.work import expected_tokens
from server.api.service import Job
from server.static_batching.batcher import Batcher, Ticket
from server.static_batching.config import ServerConfig
from server.static_batching.generate import Batch
from server.static_batching.metrics import PackageMetrics
from server.static_batching.model import LoadedModel, load_model
from server.static_batching.options import check_options, package_key
from server.static_batching.prompts import Prompt
from server.static_batching.stream import AnswerStream
from server.static_batching.worker import Worker
from server.text.tokenizer import Tokenizer


@dataclass(slots=True, eq=False)
class Entry:
    """A job that lives: it waits (then it has a deadline) or its package runs."""

    stream: AnswerStream
    work: int
    ticket: Ticket[Entry] | None = None
    deadline: asyncio.TimerHandle | None = None


class StaticBatchingService:
    """A model served package by package.

    Args:
        config: the server's configuration.
        model_id: name under which the model is served.
        clock: monotonic seconds.
    """

    kind: ServiceKind = "static_batching"
    can_stream = False
    tokenizer: Tokenizer
    vocab_size: int
    model_max_length: int

    def __init__(
        self, config: ServerConfig, model_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model_id = model_id
        self.state = ServerState.LOADING
        self.pending_tokens = 0
        self._config = config
        self._clock = clock
        self._born = clock()
        self._batcher: Batcher[Entry] = Batcher(
            config.batcher_config.package_max_workload, config.batcher_config.packaging_interval_seconds
        )
        self._metrics = PackageMetrics(model_id)
        self._entries: dict[str, Entry] = {}
        self._model: LoadedModel | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="static-batching")
        self._dispatcher: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # something was submitted, or draining began
        self._idle = asyncio.Event()
        self._idle.set()

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._model = await loop.run_in_executor(self._thread, load_model, self._config.worker_config)
        self.tokenizer = self._model.tokenizer
        await loop.run_in_executor(self._thread, lambda: self.tokenizer.vocabulary)
        self.vocab_size = self._model.vocab_size
        self.model_max_length = self._model.max_length
        self._dispatcher = asyncio.create_task(self._dispatch(self._model))
        self.state = ServerState.READY

    async def drain(self) -> None:
        self.state = ServerState.DRAINING
        self._changed.set()
        await self._idle.wait()

    async def close(self) -> None:
        if self.state is not ServerState.DRAINING:
            self.state = ServerState.FAILED
        if self._dispatcher is not None:
            self._dispatcher.cancel()
        for entry in list(self._entries.values()):
            self._end(entry, unavailable("the server was stopped"))
        # the package that runs sees that nobody wants it and ends at its next step
        self._thread.shutdown(wait=False)

    # -- jobs ----------------------------------------------------------------------------------

    def submit(self, job: Job) -> AnswerStream:
        if self.state is not ServerState.READY or self._model is None:
            raise unavailable(f"the server is {self.state}", code=str(self.state))
        self._check(job, self._model)
        stream = AnswerStream(job, lambda: self._close(job.request_id))
        work = expected_tokens(len(job.prompt_token_ids), job.config.num_rows, job.config.max_new_tokens)
        entry = Entry(stream, work)
        entry.ticket = Ticket(
            package_key(job, self._model.can_batch),
            job.config.num_rows,
            len(job.prompt_token_ids),
            self._clock(),
            entry,
            job.priority,
        )
        patience = self._config.batcher_config.queue_timeout_seconds
        if patience is not None:
            loop = asyncio.get_running_loop()
            entry.deadline = loop.call_later(patience, self._expire, entry, patience)
        self._entries[job.request_id] = entry
        self.pending_tokens += work
        self._batcher.add(entry.ticket)
        self._idle.clear()
        self._changed.set()
        return stream

    def _check(self, job: Job, model: LoadedModel) -> None:
        """Refuse what cannot be done at all, or not now."""
        if job.resume is not None:
            raise unprocessable("resume: a static-batching server has no streams", param="resume")
        check_options(job, model.can_batch, model.can_draft)
        tokens = len(job.prompt_token_ids) + job.config.max_new_tokens
        if tokens > self.model_max_length:
            field = job.field_of("max_new_tokens")
            message = (
                f"{field}: {tokens} tokens with the prompt, the model can handle {self.model_max_length}"
            )
            raise unprocessable(message, param=field, code="context_length_exceeded")
        waiting = len(self._batcher)
        if waiting >= self._config.batcher_config.max_waiting:
            raise queue_full(f"{waiting} requests are waiting already")

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        return max(0, self.model_max_length - prompt_tokens)

    def cancel(self, request_id: str) -> bool:
        entry = self._entries.get(request_id)
        if entry is None:
            return False
        self._end(entry, cancelled())
        return True

    def _close(self, request_id: str) -> None:
        entry = self._entries.get(request_id)
        if entry is not None:
            self._forget(entry)

    def _expire(self, entry: Entry, patience: float) -> None:
        self._end(entry, queue_timeout(f"the request waited {patience:g} s to be packed"))

    def _end(self, entry: Entry, error: ApiError) -> None:
        entry.stream.finish(error)
        self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if self._entries.pop(entry.stream.job.request_id, None) is None:
            return
        if entry.ticket is not None:
            self._batcher.remove(entry.ticket)
        if entry.deadline is not None:
            entry.deadline.cancel()
        self.pending_tokens -= entry.work
        if not self._entries:
            self._idle.set()

    # -- packages ------------------------------------------------------------------------------

    async def _dispatch(self, model: LoadedModel) -> None:
        """Run packages as they become ready, one at a time."""
        worker = Worker(model, self._config.worker_config.batch_size)
        loop = asyncio.get_running_loop()
        while True:
            package = await self._next_package()
            prompts = [
                Prompt(entry.stream.job.prompt_token_ids, entry.stream.job.config, entry.stream.is_ended)
                for entry in package
            ]

            def deliver(part: slice, outcome: Batch | ApiError, package: list[Entry] = package) -> None:
                loop.call_soon_threadsafe(self._delivered, package[part], outcome)

            await loop.run_in_executor(self._thread, worker.run, prompts, deliver)

    async def _next_package(self) -> list[Entry]:
        while True:
            self._changed.clear()
            draining = self.state is ServerState.DRAINING  # nobody will come: no reason to wait
            now = self._clock()
            tickets = self._batcher.take(float("inf") if draining else now)
            if tickets:
                for ticket in tickets:
                    self._metrics.packed(now - ticket.arrived)
                    ticket.load.ticket = None
                    if ticket.load.deadline is not None:
                        ticket.load.deadline.cancel()
                return [ticket.load for ticket in tickets]
            ready_at = self._batcher.ready_at()
            try:
                async with asyncio.timeout(None if ready_at is None else ready_at - now):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _delivered(self, entries: list[Entry], outcome: Batch | ApiError) -> None:
        if isinstance(outcome, Batch):
            self._metrics.ran(outcome, self._clock())
        for i, entry in enumerate(entries):
            entry.stream.finish(outcome.answers[i] if isinstance(outcome, Batch) else outcome)
            self._forget(entry)

    # -- what others ask -----------------------------------------------------------------------

    def status(self) -> ServerStatus:
        waiting = len(self._batcher)
        load = ServerLoad(
            running=len(self._entries) - waiting,
            waiting=waiting,
            pending_tokens=self.pending_tokens,
            tokens_per_second=self._metrics.tokens_per_second(self._clock()),
        )
        capacity = None
        if self._model is not None:
            capacity = ServerCapacity(
                max_beams=self._config.batcher_config.package_max_workload,
                max_waiting=self._config.batcher_config.max_waiting,
                model_max_length=self._model.max_length,
            )
        return ServerStatus(
            service=self.kind,
            state=self.state,
            model_id=self.model_id,
            version=__version__,
            uptime_seconds=self._clock() - self._born,
            load=load,
            capacity=capacity,
            capabilities={} if self._model is None else self._model.capabilities,
            details={"pid": os.getpid(), **self._metrics.totals()},
        )

    def collect(self) -> Iterable[Metric]:
        waiting = len(self._batcher)
        return self._metrics.collect(len(self._entries) - waiting, waiting)
