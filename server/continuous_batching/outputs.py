"""What a step reports to whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.completion import FinishReason
from server.text.logprob import TokenLogprob

QUEUE_TIMEOUT = ("queue_timeout", "the request waited longer than the queue timeout")
"""Code and message of a failure."""


@dataclass(slots=True)
class AnswerDelta:
    """New tokens of one answer; the last one of an answer carries the reason of its end.

    `request_id` and `index` say which answer; `token_ids` are those since the last delta (all of
    them at once for requests that do not stream).
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprob] | None = None


@dataclass(slots=True)
class PromptReport:
    """The log probabilities of the next tokens of a request's prompt, from its second token on; all have come
    before its first answer begins."""

    request_id: str
    logprobs: list[TokenLogprob]


@dataclass(slots=True)
class RequestFailure:
    """A request that ends without (further) answers; `param` is the option at fault, if it is one."""

    request_id: str
    status: int
    code: str
    message: str
    param: str | None = None


@dataclass(slots=True)
class StepOutput:
    """The output of one step.

    Attributes:
        started: ids of requests that left the waiting queue for the first time, and how many tokens of the
            prompt of each the cache had.
        begun: ids of requests whose first token was chosen, where answers are told whole.
        prompts: reports on prompts; they precede the deltas.
        deltas: progress of answers.
        done: ids of requests whose answers are all complete.
        failures: requests that ended otherwise.
        seconds: how long the step took.
    """

    started: dict[str, int] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    prompts: list[PromptReport] = field(default_factory=list)
    deltas: list[AnswerDelta] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)
    seconds: float = 0.0

    def __bool__(self) -> bool:
        told = (self.started, self.begun, self.prompts, self.deltas, self.done, self.failures)
        return any(told)
