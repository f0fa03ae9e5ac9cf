"""The native completion routes, ``/completion/v1`` and ``/completion/v2``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from protocol.body import Body
from protocol.generation import GenerationConfig, TokenId, TokenKey

MAX_PRIORITY = 100
FinishReason = Literal["stop", "length"]

TextPrompt = Annotated[str, Field(min_length=1)]
TokenPrompt = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
"""A list that is none is left at its first element that is no token id: it may be long."""


CacheSalt = Annotated[
    str,
    Field(
        min_length=1, max_length=256, description="reuses cached prompts of requests with the same one only"
    ),
]


class ResumedChoice(BaseModel):
    """One answer of a stream that another server began."""

    model_config = ConfigDict(extra="forbid", strict=True)

    token_ids: list[TokenId] = []
    finished: bool = False


class Resume(BaseModel):
    """Where a stream was cut, so that a peer continues it without losing or repeating a byte.

    For gateways alone, so it stands in no document. Set by the gateway from the stream's checkpoints
    (`protocol.sse`). `created` is the time stamp of the first server's chunks; the chunk id follows
    from the request id. `weights` is the fingerprint of the first server's checkpoint, where it reported one:
    another checkpoint would continue with another answer. `sampling` are its defaults, if reported.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    created: Annotated[int, Field(ge=0, lt=2**63)]
    choices: list[ResumedChoice]
    weights: Annotated[str, Field(max_length=128)] | None = None
    sampling: (
        dict[Literal["temperature", "top_k", "top_p", "min_p", "repetition_penalty"], int | float] | None
    ) = None


class CompletionRequest(Body):
    """A prompt, as text or as token ids, and how to continue it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    prompt: TextPrompt | TokenPrompt
    generation_config: GenerationConfig = GenerationConfig()
    stream: bool = False
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="higher runs first")] = 0
    return_token_ids: bool = False
    cache_salt: CacheSalt | None = None
    resume: SkipJsonSchema[Resume | None] = None


class Logprobs(BaseModel):
    """Log probabilities of the chosen tokens under the model, before any penalty or filter.

    Where the prompt is echoed they begin with its tokens; of the first, which follows nothing, there is none.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class PromptLogprob(BaseModel):
    """Log probability of one token at a place of a prompt."""

    logprob: float
    rank: int
    """Its place among all tokens, counted from 1."""
    decoded_token: str


PromptLogprobs = list[dict[TokenKey, PromptLogprob] | None]
"""Those of the prompt's own token and of the likeliest ones, by id, place by place, as vLLM has them; of the
first token, which follows nothing, there is none."""


class CompletionChoice(BaseModel):
    """One answer; in a stream, the next piece of it."""

    text: str
    index: int
    finish_reason: FinishReason | None = None
    token_ids: list[int] | None = None
    logprobs: Logprobs | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Usage(BaseModel):
    """Counts of tokens; prompt tokens are counted once however many answers were made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int) -> Usage:
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


class CompletionResponse(BaseModel):
    """The answer to `CompletionRequest`; as the last event of a stream it carries the usage."""

    choices: list[CompletionChoice]
    usage: Usage | None = None
