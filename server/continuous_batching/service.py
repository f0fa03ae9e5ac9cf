"""The HTTP side of a continuous-batching server: jobs to the engine process, tokens back as text."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from prometheus_client import Metric

from protocol import __version__
from protocol.accepts import Refusal
from protocol.errors import cancelled, internal, queue_full, unavailable, unprocessable
from protocol.status import ServerCapacity, ServerLoad, ServerState, ServerStatus, ServiceKind
from protocol.work import expected_tokens
from server.api.refusals import check_refusals
from server.api.service import Job, check_ready
from server.checkpoints.sampling_defaults import sampling_defaults
from server.continuous_batching import messages
from server.continuous_batching.checkpoint_reader import CheckpointReader
from server.continuous_batching.failures import api_error
from server.continuous_batching.metrics import EngineMetrics
from server.continuous_batching.outputs import AnswerDelta
from server.continuous_batching.refusals import refusals
from server.continuous_batching.spawned import SpawnedEngine
from server.continuous_batching.stats import EngineStats
from server.continuous_batching.stream import JobStream
from server.continuous_batching.supervisor import EngineSupervisor
from server.scheduling.limits import Limits
from server.scheduling.params import SamplingParams
from server.text.checks import check_goes_on
from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class ContinuousBatchingService:
    """A model served by an engine process; a `server.api.service.Service`.

    Args:
        reader: of the checkpoint, for the server's configuration.
        model_id: name under which the model is served.
        engine: an engine process that is already running and configured with what `reader` reads; the
            service takes ownership.
    """

    kind: ServiceKind = "continuous_batching"
    refusals: tuple[Refusal, ...] | None = None
    fingerprint: str | None = None
    tokenizer: Tokenizer
    vocab_size: int
    model_max_length: int

    def __init__(self, reader: CheckpointReader, model_id: str, engine: SpawnedEngine | None = None) -> None:
        self.model_id, self.model_aliases = model_id, reader.config.model_aliases
        self.sampling_defaults: Mapping[str, float] = {}
        self._reader, self._config = reader, reader.config
        self._born = time.monotonic()
        self._engine_state = ServerState.LOADING
        self._loaded = False  # both the engine and the tokenizer
        self._ending: ServerState | None = None
        self._metrics = EngineMetrics(model_id)
        self._streams: dict[str, JobStream] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._supervisor = EngineSupervisor(
            self._on_ready, self._on_report, self._on_lost, lambda: bool(self._streams), engine
        )
        self._limits: Limits | None = None
        self._eos_token_ids: tuple[int, ...] = ()
        self._capabilities: dict[str, Any] = {}

    # -- life ----------------------------------------------------------------------------------

    @property
    def state(self) -> ServerState:
        if self._ending is not None:
            return self._ending
        return self._engine_state if self._loaded else ServerState.LOADING

    async def start(self) -> None:
        step_timeout = self._config.batcher_config.step_timeout_seconds
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._supervisor.start(self._reader.parts, step_timeout))
                tasks.create_task(self._read_checkpoint())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        self._loaded = True

    async def _read_checkpoint(self) -> None:
        """Take what this process needs of the checkpoint."""
        self._config = await asyncio.wrap_future(self._reader.located)
        self.tokenizer = await asyncio.wrap_future(self._reader.tokenizer)
        path, wanted = self._config.model_loading_config.model_name_or_path, self._config.generation_config
        self.sampling_defaults = await asyncio.to_thread(sampling_defaults, path, wanted)

    async def drain(self) -> None:
        self._ending = ServerState.DRAINING
        await self._idle.wait()

    async def close(self) -> None:
        if self._ending is None:
            self._ending = ServerState.FAILED
        await self._supervisor.close()
        self._fail_streams()

    # -- jobs ----------------------------------------------------------------------------------

    def submit(self, job: Job) -> JobStream:
        check_ready(self)
        assert self._limits is not None
        params = SamplingParams.of(
            job.config, self._eos_token_ids, self._config.speculation_config.prompt_lookup
        )
        self._check(job, params, self._limits)
        waiting = sum(not stream.started for stream in self._streams.values())
        if not self._limits.has_room(waiting):
            raise queue_full(f"{waiting} requests are waiting already")
        stream = JobStream(job, self.tokenizer.vocabulary, lambda: self._close_stream(job.request_id))
        self._supervisor.send(self._message(job, params))  # first: a job that cannot be sent is not kept
        self._streams[job.request_id] = stream
        self._idle.clear()
        config = job.config
        self._metrics.stats.pending_tokens += expected_tokens(
            len(job.prompt_token_ids), config.num_rows, config.max_new_tokens
        )
        return stream

    def _message(self, job: Job, params: SamplingParams) -> messages.Add:
        resumed = job.resume if job.resume is not None and job.config.num_beams == 1 else None
        return messages.Add(
            request_id=job.request_id,
            prompt=job.prompt_token_ids,
            params=params,
            priority=job.priority,
            stream=job.stream,
            patience=self._config.batcher_config.queue_timeout_seconds,
            emitted=None if resumed is None else [choice.token_ids for choice in resumed],
            cache_salt=job.cache_salt,
            finished_answers=[i for i, choice in enumerate(resumed or ()) if choice.finished],
        )

    def _check(self, job: Job, params: SamplingParams, limits: Limits) -> None:
        """Refuse what can never be done."""
        if job.request_id in self._streams:
            raise unprocessable(f"a request with the id {job.request_id!r} is being answered")
        config = job.config
        objection = limits.objection(len(job.prompt_token_ids), config.num_rows, config.max_new_tokens)
        if objection is not None:
            options = {"prompt_tokens": "prompt", "rows": config.rows_option, "new_tokens": "max_new_tokens"}
            field = job.field_of(options[objection[0]])
            raise unprocessable(f"{field}: {objection[1]}", param=field, code="cannot_fit")
        check_refusals(job, self.refusals or ())
        if job.resume is not None:
            check_goes_on(job.resume, params.eos_token_ids, params.stop, self.tokenizer.vocabulary)

    def cancel(self, request_id: str) -> bool:
        stream = self._streams.get(request_id)
        if stream is None:
            return False
        self._close_stream(request_id)
        stream.end(cancelled())
        return True

    def _close_stream(self, request_id: str) -> None:
        """The rest of an answer is not wanted any more."""
        if self._forget(request_id) is not None:
            self._supervisor.send(messages.Cancel(request_id))

    def _forget(self, request_id: str) -> JobStream | None:
        stream = self._streams.pop(request_id, None)
        if not self._streams:
            self._idle.set()
        return stream

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        return 0 if self._limits is None else self._limits.max_new_tokens(prompt_tokens, rows)

    # -- what the engine says ------------------------------------------------------------------

    def _on_ready(self, message: messages.Ready) -> None:
        self._limits = message.limits
        self._eos_token_ids = message.eos_token_ids
        self._capabilities = message.capabilities
        self.refusals = refusals(message.limits)
        self.fingerprint = message.fingerprint
        self.vocab_size = message.vocab_size
        self.model_max_length = message.limits.model_max_length
        self._engine_state = ServerState.READY

    def _on_report(self, report: messages.Report) -> None:
        now = asyncio.get_running_loop().time()
        output = report.output
        for request_id, cached_tokens in output.started.items():
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.started, stream.cached_tokens = True, cached_tokens
                stream.queue_seconds = max(0.0, now - output.seconds - stream.submitted_at)
                self._metrics.observe_queue_time(stream.queue_seconds)
        for request_id in output.begun:
            stream = self._streams.get(request_id)
            if stream is not None and stream.first_token_seconds is None:
                stream.first_token_seconds = now - stream.submitted_at
        for prompt in output.prompts:
            stream = self._streams.get(prompt.request_id)
            if stream is not None:
                stream.feed_prompt(prompt)
        for delta in output.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:
                self._feed(stream, delta)
        for request_id in output.done:
            stream = self._forget(request_id)
            if stream is not None:
                stream.end()
        for failure in output.failures:
            stream = self._forget(failure.request_id)
            if stream is not None:
                stream.end(api_error(failure, stream.job))
        if report.stats is not None:
            self._metrics.update(report.stats, now)

    def _feed(self, stream: JobStream, delta: AnswerDelta) -> None:
        """Hand on new tokens; where they cannot be made into text, that request fails alone."""
        try:
            stream.feed(delta)
        except Exception as error:
            logger.exception("the answer of request %s cannot be written", delta.request_id)
            self._close_stream(delta.request_id)
            stream.end(internal(f"this request failed: {error}"))

    def _on_lost(self, state: ServerState) -> None:
        """The engine is gone, and all it was doing with it; `state` is that of its replacement."""
        self._engine_state = state
        self._metrics.update(EngineStats(), asyncio.get_running_loop().time())
        self._fail_streams()

    def _fail_streams(self) -> None:
        lost = unavailable("the engine was lost while it worked on this request", code="engine_lost")
        unheard = unavailable("the engine was lost before it began with this request", code="loading")
        for stream in self._streams.values():
            stream.end(lost if stream.started else unheard)
        self._streams.clear()
        self._idle.set()

    # -- what others ask -----------------------------------------------------------------------

    @property
    def pending_tokens(self) -> int:
        return self._metrics.stats.pending_tokens

    def status(self) -> ServerStatus:
        stats, limits = self._metrics.stats, self._limits
        load = ServerLoad(
            running=stats.running,
            waiting=stats.waiting,
            swapped=stats.swapped,
            pending_tokens=stats.pending_tokens,
            kv_cache_usage=stats.cache_usage,
            tokens_per_second=self._metrics.tokens_per_second(time.monotonic()),
        )
        capacity = None
        if limits is not None:
            capacity = ServerCapacity(
                max_beams=limits.max_rows,
                max_waiting=limits.max_waiting,
                model_max_length=limits.model_max_length,
            )
        processes = {
            "pid": os.getpid(),
            "engine_pid": self._supervisor.pid,
            "engine_restarts": self._supervisor.restarts,
            "engine_start": self._supervisor.start_clock.told(),
        }
        return ServerStatus(
            service=self.kind,
            state=self.state,
            problem=self.health(),
            model_id=self.model_id,
            version=__version__,
            uptime_seconds=time.monotonic() - self._born,
            load=load,
            capacity=capacity,
            capabilities=self._capabilities,
            details={**processes, "engine": msgspec.to_builtins(stats)},
        )

    def health(self) -> str | None:
        return self._supervisor.problem

    def collect(self) -> Iterable[Metric]:
        return self._metrics.collect(self._supervisor.restarts)
