"""A service without a model: it answers every prompt with the same text, token by token."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from protocol.accepts import TRUE, Refusal
from protocol.errors import ApiError, cancelled, unavailable
from protocol.status import ServerCapacity, ServerLoad, ServerState, ServerStatus, ServiceKind
from server.api.refusals import check_refusals
from server.api.service import Delta, Job, TokenLogprob
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

REPLY = "Hello, 世界! 😀 forty-two is the answer, of course; the end is near."


class FakeService:
    """Implements `server.api.service.Service`; the attributes below script what happens.

    Answer i of a prompt is `reply` without its first i tokens.
    """

    fingerprint: str | None = "weights"
    model_id = "fake"
    model_aliases: tuple[str, ...] = ()
    sampling_defaults: Mapping[str, float] = {}
    model_max_length = 256
    max_waiting = 64

    def __init__(
        self,
        tokenizer: Tokenizer,
        kind: ServiceKind = "continuous_batching",
        reply: list[int] | None = None,
    ) -> None:
        self.kind = kind
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer.vocabulary)
        self.state = ServerState.LOADING
        self.pending_tokens = 17
        whole = Refusal(option="stream", reason="answers whole", when={"stream": TRUE})
        self.refusals: tuple[Refusal, ...] | None = () if kind == "continuous_batching" else (whole,)
        self.reply = tokenizer.encode(REPLY, special=False) if reply is None else reply
        self.seconds_per_token = 0.0
        self.cached_tokens = 0  # of each prompt
        self.fail_after = math.inf  # tokens after which the iterator raises
        self.failure: Exception = unavailable("the engine was lost", code="engine_lost")
        self.problem: str | None = None  # what `health` says
        self.refusal: ApiError | None = None  # raised by submit
        self.start_failure: Exception | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.jobs: list[Job] = []
        self.live: dict[str, FakeStream] = {}
        self.closed = 0  # calls of close

    async def start(self) -> None:
        await self.may_start.wait()
        if self.start_failure is not None:
            self.state = ServerState.FAILED
            raise self.start_failure
        self.state = ServerState.READY

    async def drain(self) -> None:
        self.state = ServerState.DRAINING
        while self.live:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.closed += 1
        for stream in self.live.values():
            stream.ended_by = unavailable("the server was stopped")

    def submit(self, job: Job) -> FakeStream:
        if self.refusal is not None:
            raise self.refusal
        check_refusals(job, self.refusals or ())
        self.jobs.append(job)
        return FakeStream(self, job)

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        return max(0, self.model_max_length - prompt_tokens)

    def status(self) -> ServerStatus:
        return ServerStatus(
            service=self.kind,
            state=self.state,
            model_id=self.model_id,
            version="0",
            uptime_seconds=1.0,
            problem=self.problem,
            load=ServerLoad(pending_tokens=self.pending_tokens, running=len(self.live)),
            capacity=ServerCapacity(
                max_beams=8, max_waiting=self.max_waiting, model_max_length=self.model_max_length
            ),
        )

    def health(self) -> str | None:
        return self.problem

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("vllm:num_requests_running", "Requests running.", len(self.live))

    def cancel(self, request_id: str) -> bool:
        stream = self.live.get(request_id)
        if stream is not None:
            stream.ended_by = cancelled()
        return stream is not None


class FakeStream:
    """The deltas of one job, as scripted by the service."""

    def __init__(self, service: FakeService, job: Job) -> None:
        self._service = service
        self._job = job
        self._script = self._deltas()
        self.ended_by: ApiError | None = None
        service.live[job.request_id] = self

    def _deltas(self) -> Iterator[Delta]:
        job, reply = self._job, self._service.reply
        vocabulary = self._service.tokenizer.vocabulary.showing(job.shown_markers)
        texts = [Detokenizer(vocabulary, job.config.stop) for _ in range(job.config.num_choices)]
        tokens = [reply[i:][: job.config.max_new_tokens] for i in range(job.config.num_choices)]
        full = [len(reply) - i for i in range(job.config.num_choices)]
        done = [0] * len(tokens)
        for i, choice in enumerate(job.resume or ()):
            texts[i].feed(choice.token_ids)
            done[i] = len(tokens[i]) if choice.finished else len(choice.token_ids)
        for at in range(max(map(len, tokens))):
            for i, ids in enumerate(tokens):
                if not done[i] <= at < len(ids) or texts[i].stopped:
                    continue
                text = texts[i].feed([ids[at]])
                reason = None
                if texts[i].stopped:
                    reason = "stop"
                elif at == len(ids) - 1:
                    text += texts[i].finish()
                    reason = "stop" if len(ids) == full[i] else "length"
                told = None if at else self._prompt_logprobs()
                logprobs, cached = self._logprobs(ids[at]), self._service.cached_tokens
                yield Delta(i, text, [ids[at]], reason, logprobs, told, cached_tokens=cached)

    def _logprobs(self, token_id: int) -> list[TokenLogprob] | None:
        k = self._job.config.logprobs
        if k is None:
            return None
        top = [(token_id, -0.5), (5, -math.inf)][:k]
        return [TokenLogprob(token_id, -0.5, top)]

    def _prompt_logprobs(self) -> list[TokenLogprob] | None:
        k = self._job.config.prompt_logprobs
        if k is None:
            return None
        return [
            TokenLogprob(token_id, -float(place), [(5, -0.5), (token_id, -float(place))][:k], 2)
            for place, token_id in enumerate(self._job.prompt_token_ids[1:], start=1)
        ]

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Delta:
        service = self._service
        await asyncio.sleep(service.seconds_per_token)
        if self.ended_by is not None:
            raise self.ended_by
        service.fail_after -= 1
        if service.fail_after < 0:
            raise service.failure
        delta = next(self._script, None)
        if delta is None:
            raise StopAsyncIteration
        return delta

    async def aclose(self) -> None:
        self._service.live.pop(self._job.request_id, None)
