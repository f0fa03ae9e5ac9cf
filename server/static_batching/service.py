"""The static-batching strategy as a `server.api.service.Service`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import Metric

from protocol import __version__
from protocol.accepts import Refusal
from protocol.errors import (
    ApiError,
    cancelled,
    internal,
    queue_full,
    queue_timeout,
    unavailable,
    unprocessable,
)
from protocol.status import ServerLoad, ServerState, ServerStatus, ServiceKind
from protocol.work import expected_tokens
from server.api.refusals import check_refusals
from server.api.service import Job, check_ready
from server.checkpoints.sampling_defaults import sampling_defaults
from server.static_batching.batcher import Batcher, QueuedRequest
from server.static_batching.config import ServerConfig
from server.static_batching.entry import Entry
from server.static_batching.generate import Batch
from server.static_batching.metrics import PackageMetrics
from server.static_batching.model import LoadedModel, load_model
from server.static_batching.options import package_key
from server.static_batching.problems import BrokenModelError
from server.static_batching.progress import Progress, default_step_timeout
from server.static_batching.stream import AnswerStream
from server.static_batching.worker import Worker
from server.text.tokenizer import Tokenizer
from utils.messages import one_line

logger = logging.getLogger(__name__)


class StaticBatchingService:
    """A model served package by package.

    Args:
        config: the server's configuration.
        model_id: name under which the model is served.
        clock: monotonic seconds.
        on_failure: called when the model stops to run, once the requests have failed.
    """

    kind: ServiceKind = "static_batching"
    refusals: tuple[Refusal, ...] | None = None
    fingerprint: str | None = None
    tokenizer: Tokenizer
    vocab_size: int
    model_max_length: int

    def __init__(
        self,
        config: ServerConfig,
        model_id: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self.model_id, self.model_aliases = model_id, config.model_aliases
        self.sampling_defaults: Mapping[str, float] = {}
        self.state = ServerState.LOADING
        self.pending_tokens = 0
        self._config = config
        self._clock = clock
        self._on_failure = on_failure
        self._failure: str | None = None
        self._progress = Progress(clock)
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
        path, wanted = self._config.worker_config.located().model_name_or_path, self._config.generation_config
        self.sampling_defaults = await loop.run_in_executor(self._thread, sampling_defaults, path, wanted)
        await loop.run_in_executor(self._thread, lambda: self.tokenizer.vocabulary)
        self.vocab_size = self._model.vocab_size
        self.model_max_length = self._model.max_length
        self.refusals, self.fingerprint = self._model.refusals, self._model.fingerprint
        configured = self._config.batcher_config.step_timeout_seconds
        self._progress.step_timeout = configured or default_step_timeout(self._model.device)
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
        # the package that runs sees that it is not wanted and ends at its next step
        self._thread.shutdown(wait=False)

    # -- jobs ----------------------------------------------------------------------------------

    def submit(self, job: Job) -> AnswerStream:
        check_ready(self)
        assert self._model is not None
        self._check(job)
        stream = AnswerStream(job, lambda: self._close(job.request_id))
        work = expected_tokens(len(job.prompt_token_ids), job.config.num_rows, job.config.max_new_tokens)
        entry = Entry(stream, work)
        entry.queued = QueuedRequest(
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
        self._batcher.add(entry.queued)
        self._idle.clear()
        self._changed.set()
        return stream

    def _check(self, job: Job) -> None:
        """Refuse what cannot be done at all, or not now."""
        tokens = len(job.prompt_token_ids) + job.config.max_new_tokens
        if tokens > self.model_max_length:
            field = job.field_of("max_new_tokens")
            message = (
                f"{field}: {tokens} tokens with the prompt, the model can handle {self.model_max_length}"
            )
            raise unprocessable(message, param=field, code="context_length_exceeded")
        check_refusals(job, self.refusals or ())
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
        if entry.queued is not None:
            self._batcher.remove(entry.queued)
        if entry.deadline is not None:
            entry.deadline.cancel()
        self.pending_tokens -= entry.work
        if not self._entries:
            self._idle.set()

    # -- packages ------------------------------------------------------------------------------

    async def _dispatch(self, model: LoadedModel) -> None:
        """Run packages as they become ready, one at a time, until the model does not run any more."""
        worker = Worker(model, self._config.worker_config.batch_size)
        try:
            while True:
                await self._run(worker, await self._next_package())
        except BrokenModelError as error:
            self._fail(str(error))
        except Exception as error:
            logger.exception("packages cannot be run any more")
            self._fail(f"packages cannot be run any more: {one_line(error)}")

    async def _run(self, worker: Worker, package: list[Entry]) -> None:
        """Answer or fail each request of `package`."""
        loop = asyncio.get_running_loop()

        def deliver(part: slice, outcome: Batch | ApiError) -> None:
            loop.call_soon_threadsafe(self._delivered, package[part], outcome)

        self._progress.step()
        prompts = [entry.prompt(self._progress.step) for entry in package]
        try:
            await loop.run_in_executor(self._thread, worker.run, prompts, deliver)
        finally:
            self._progress.idle()
        for entry in package:  # what could not be delivered, for whatever reason
            self._end(entry, internal("this request failed; the server's log says why"))

    def _fail(self, reason: str) -> None:
        """Nothing can be answered any more: say why, and fail what lives."""
        logger.error("%s has failed: %s", self.model_id, reason)
        self.state, self._failure = ServerState.FAILED, reason
        for entry in list(self._entries.values()):
            # so that a gateway asks another server, but not all of them for what may have been the cause
            code = "failed" if entry.queued is not None else "engine_lost"
            self._end(entry, unavailable(reason, code=code))
        if self._on_failure is not None:
            self._on_failure()

    async def _next_package(self) -> list[Entry]:
        while True:
            self._changed.clear()
            draining = self.state is ServerState.DRAINING  # no request will come: no reason to wait
            now = self._clock()
            package = self._batcher.take(float("inf") if draining else now)
            if package:
                for queued in package:
                    self._metrics.packed(now - queued.arrived)
                    queued.item.queued = None
                    if queued.item.deadline is not None:
                        queued.item.deadline.cancel()
                return [queued.item for queued in package]
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
            entry.finish(outcome.answers[i] if isinstance(outcome, Batch) else outcome)
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
        batcher, model = self._config.batcher_config, self._model
        return ServerStatus(
            service=self.kind,
            state=self.state,
            problem=self.health(),
            model_id=self.model_id,
            version=__version__,
            uptime_seconds=self._clock() - self._born,
            load=load,
            capacity=None if model is None else batcher.capacity(model.max_length),
            capabilities={} if model is None else model.capabilities,
            details={"pid": os.getpid(), **self._metrics.totals()},
        )

    def health(self) -> str | None:
        return self._failure or self._progress.problem()

    def collect(self) -> Iterable[Metric]:
        waiting = len(self._batcher)
        return self._metrics.collect(len(self._entries) - waiting, waiting)
