"""The seam between the HTTP routes and whatever generates tokens.

A `Service` takes one `Job` at a time (one prompt, all of its answers) and yields `Delta`s. The
routes in this package turn requests into jobs and deltas into the shape of each API; they do not
know which batching strategy runs behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import Metric

from protocol.accepts import Refusal
from protocol.completion import FinishReason, ResumedChoice
from protocol.errors import unavailable
from protocol.generation import GenerationConfig
from protocol.status import ServerState, ServerStatus, ServiceKind
from server.text.formats.parts import Part
from server.text.logprob import TokenLogprob
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Job:
    """One prompt to be continued."""

    request_id: str
    """Unique among the jobs that live."""
    prompt_token_ids: list[int]
    config: GenerationConfig
    priority: int = 0
    stream: bool = False
    """Deltas are wanted as they come; otherwise one delta per answer at the end is best."""
    resume: list[ResumedChoice] | None = None
    """Answers that another server began: their tokens are taken as generated, their text as sent.
    Deltas hold only what comes after; a finished answer has none. At least one is unfinished.
    Beam search gives out whole answers only: it is run anew, and the finished ones are left out."""
    field_of: Callable[[str], str] = str
    """What the request calls the prompt (``prompt``) or an option of `GenerationConfig`: errors shall
    name that."""
    shown_markers: str | None = ""
    """Special tokens that stand in this text are shown in answers; None: all are (`Vocabulary.showing`)."""
    cache_salt: bytes = b""
    """Jobs may reuse each other's cached prompts only if theirs are equal."""


@dataclass(slots=True)
class Delta:
    """The next piece of one answer; it belongs to who receives it."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of the prompt's tokens from the second on, where they are wanted; with the first piece of an answer."""
    queue_seconds: float | None = None
    """How long the job had to wait, where the service knows; in a first piece."""
    first_token_seconds: float | None = None
    """How long the job's first token took, where the piece is a whole answer and the service knows."""
    cached_tokens: int = 0
    """How many tokens of the job's prompt the prefix cache had when the job was begun; in every piece."""
    parts: list[Part] | None = None
    """`text`, sorted (`server.text.formats`); None where answers are plain text."""


class DeltaStream(Protocol):
    """The deltas of one job, ending when each of its answers has had its finish reason.

    An async generator is one, if the job is freed by `aclose` even before the first `anext`.
    """

    def __aiter__(self) -> AsyncIterator[Delta]: ...

    async def __anext__(self) -> Delta: ...

    async def aclose(self) -> None:
        """Cancel the job where it still runs and free all it held; safe at any time, repeatedly."""
        ...


class Service(Protocol):
    """A model that is being served.

    Life: made (`LOADING`, cheap, no I/O) → `start` → `READY` → `drain` → `close`. `state`,
    `status`, `health`, `pending_tokens`, `refusals`, `fingerprint`, `kind` and `model_id` can be read at any
    time, the rest once ready.

    `submit` validates at once: it raises `ApiError` (422 what can never be done, by `refusals`
    (`server.api.refusals.check_refusals`) or by size, 429 a full
    queue, 503 not ready) before anything is queued. Errors later on (408 queue timeout, 503 lost
    engine, 409 cancelled by id) are raised by the iterator.
    """

    kind: ServiceKind
    model_id: str
    model_aliases: tuple[str, ...]
    """Further names of the model."""
    tokenizer: Tokenizer
    vocab_size: int
    """Rows of the model's output layer: token ids at or above it do not exist."""
    model_max_length: int
    refusals: tuple[Refusal, ...] | None
    """What it does not take, told in ``/status``; None until the model is loaded."""
    sampling_defaults: Mapping[str, float]
    """What requests to ``/v1/*`` leave out, by its name there (`server.checkpoints.sampling_defaults`)."""
    fingerprint: str | None
    """That of the checkpoint (`server.checkpoints.fingerprint`); None until it is loaded."""

    @property
    def state(self) -> ServerState: ...

    @property
    def pending_tokens(self) -> int:
        """`ServerLoad.pending_tokens`, cheap enough to read on every answer."""
        ...

    async def start(self) -> None:
        """Load the model and become `READY`; the event loop stays free meanwhile.

        Raises:
            Exception: the model cannot be served; one line that says why.
        """
        ...

    async def drain(self) -> None:
        """Refuse new jobs with 503 from now on and return when the accepted ones are done."""
        ...

    async def close(self) -> None:
        """Stop at once, failing what still runs with 503, and free everything; safe in every state
        and repeatedly."""
        ...

    def submit(self, job: Job) -> DeltaStream: ...

    def max_new_tokens(self, prompt_tokens: int, rows: int) -> int:
        """The most new tokens a request with that prompt may ask for; 0 where it cannot fit."""
        ...

    def status(self) -> ServerStatus: ...

    def health(self) -> str | None:
        """None while the service makes progress, is idle, or loads for the first time; otherwise one
        line that says what is wrong. ``/health`` answers 503 with it, and so does a request for an answer.
        """
        ...

    def collect(self) -> Iterable[Metric]:
        """Its own metrics (queue, cache, …), read at each scrape: a service is a Prometheus
        collector. What can be measured at the HTTP routes (`server.api.metrics`) is not among them.
        """
        ...

    def cancel(self, request_id: str) -> bool:
        """Cancel by id: the iterator raises `protocol.errors.cancelled`; False if none lives."""
        ...


def check_ready(service: Service) -> None:
    """Return if the service takes requests.

    Raises:
        ApiError: 503; its code is the state of the service, or ``unhealthy``, and its message the reason.
    """
    state, problem = service.state, service.health()
    if state is ServerState.READY and problem is None:
        return
    code = "unhealthy" if state is ServerState.READY else state.value
    message = f"the server is {code}" if problem is None else f"the server is {code}: {problem}"
    raise unavailable(message, code=code, retry_after=2)
