"""The OpenAI-compatible routes: ``/v1/completions``, ``/v1/chat/completions``, ``/v1/models``.

Beside OpenAI's own fields the requests take the options of `GenerationConfig` that OpenAI lacks,
under the names that the field uses for them.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.completion import FinishReason, Logprobs, Resume, TextPrompt, TokenPrompt, Usage
from protocol.errors import FieldError, model_not_found, unprocessable
from protocol.generation import MAX_CHOICES, MAX_LOGPROBS, GenerationConfig

OpenAIPrompt = (
    TextPrompt
    | TokenPrompt
    | Annotated[list[TextPrompt], Field(min_length=1, fail_fast=True)]
    | Annotated[list[TokenPrompt], Field(min_length=1, fail_fast=True)]
)


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    continuous_usage_stats: Annotated[
        bool, Field(description="usage so far in every chunk (as vLLM; load generators ask for it)")
    ] = False
    include_obfuscation: bool = False

    @model_validator(mode="after")
    def _check(self) -> StreamOptions:
        if self.include_obfuscation:
            raise FieldError("include_obfuscation", "not supported")
        if self.continuous_usage_stats and not self.include_usage:
            raise FieldError("continuous_usage_stats", "needs include_usage")
        return self


class SharedRequest(BaseModel):
    """The fields that both completion routes take."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    logit_bias: dict[str, float] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # labels that change no token
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # beyond OpenAI, as in GenerationConfig
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    num_beams: int | None = None
    early_stopping: bool | Literal["never"] | None = None
    length_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    resume: Resume | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "only for a stream")
        return self

    def generation_config(self, max_new_tokens: int, logprobs: int | None) -> GenerationConfig:
        """These options in the terms of `GenerationConfig`.

        OpenAI's default is to sample at temperature 1 with a fresh seed; temperature 0 is greedy,
        and so is beam search unless a temperature is given.

        Raises:
            pydantic.ValidationError: an option is out of range or contradicts another.
            ApiError: 422, `min_tokens` does.
        """
        if self.min_tokens is not None and self.min_tokens > max_new_tokens:
            message = f"min_tokens: {self.min_tokens} exceeds {max_new_tokens}, the most tokens of the answer"
            raise unprocessable(message, param="min_tokens", code="invalid_value")
        beams = self.num_beams or 1
        greedy = self.temperature == 0.0 or (beams > 1 and self.temperature is None)
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "min_new_tokens": self.min_tokens,
            "do_sample": not greedy,
            "temperature": self.temperature or None,
            # top_p = 0 asks for the likeliest token alone; a filter always keeps one
            "top_p": 1e-9 if self.top_p == 0.0 else self.top_p,
            "seed": secrets.randbits(48) if self.seed is None else self.seed % 2**63,
            "n": self.n,
            "logprobs": logprobs,
        }
        shared = (
            "top_k min_p typical_p repetition_penalty presence_penalty frequency_penalty logit_bias "
            "num_beams early_stopping length_penalty stop stop_token_ids ignore_eos "
            "prompt_lookup_num_tokens max_matching_ngram_size"
        )
        options |= {name: getattr(self, name) for name in shared.split()}
        if options["top_k"] == -1:
            options["top_k"] = 0
        return GenerationConfig.model_validate(options)


class OpenAICompletionRequest(SharedRequest):
    """Body of ``POST /v1/completions``."""

    prompt: OpenAIPrompt
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _check(self) -> OpenAICompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise FieldError("best_of", "supported only where it equals n")
        if self.suffix:
            raise FieldError("suffix", "not supported")
        if self.echo and self.logprobs is not None:
            raise FieldError("echo", "not supported together with logprobs")
        return self


class TextPart(BaseModel):
    """A piece of a message; parts of another type are refused by it."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation; content is text or OpenAI's list of text parts."""

    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None

    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatCompletionRequest(SharedRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatCompletionRequest:
        if self.tools:
            raise FieldError("tools", "not supported")
        if self.tool_choice not in (None, "none", "auto"):
            raise FieldError("tool_choice", "needs tools, which are not supported")
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise FieldError("response_format", "supported only as {'type': 'text'}")
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs", "needs logprobs to be true")
        return self


class OpenAICompletionChoice(BaseModel):
    """One answer of ``/v1/completions``, or the next piece of it."""

    text: str
    index: int
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class OpenAICompletionResponse(BaseModel):
    """Answer, and stream chunk, of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[OpenAICompletionChoice]
    usage: Usage | None = None


class ChatLogprob(BaseModel):
    """Log probability of one token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatLogprob):
    """Log probability of the chosen token beside the likeliest ones."""

    top_logprobs: list[ChatLogprob] = []


class ChatLogprobs(BaseModel):
    """Log probabilities of an answer, token by token."""

    content: list[ChatTokenLogprob] = []
    refusal: None = None


class ChatAnswer(BaseModel):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer of ``/v1/chat/completions``."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletionResponse(BaseModel):
    """Answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """The next piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """Stream chunk of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """One entry of ``/v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "local"
    max_model_len: int | None = None


class ModelList(BaseModel):
    """Answer of ``/v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]

    def card(self, model: str) -> ModelCard:
        """The entry of `model`; ApiError (404) if there is none."""
        cards = {card.id: card for card in self.data}
        if model not in cards:
            raise model_not_found(model, list(cards))
        return cards[model]
