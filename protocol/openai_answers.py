"""Answers and stream chunks of ``/v1/completions`` and ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from protocol.chat import AnswerToolCall, ChatFinishReason, ToolCallDelta
from protocol.completion import FinishReason, Logprobs, PromptLogprobs, Usage


class PromptTokensDetails(BaseModel):
    """Details of a prompt's tokens: how many came from the prefix cache when the answer began."""

    cached_tokens: int


class OpenAIUsage(Usage):
    """Counts of tokens, as OpenAI has them."""

    prompt_tokens_details: PromptTokensDetails


class OpenAICompletionChoice(BaseModel):
    """One answer of ``/v1/completions``, or the next piece of it."""

    text: str
    index: int
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class OpenAICompletionResponse(BaseModel):
    """Answer, and stream chunk, of ``/v1/completions``."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[OpenAICompletionChoice]
    usage: OpenAIUsage | None = None


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
    content: str | None
    """None where there are calls and no text."""
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[AnswerToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer of ``/v1/chat/completions``."""

    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason
    token_ids: list[int] | None = None


class ChatCompletionResponse(BaseModel):
    """Answer of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: OpenAIUsage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class ChatDelta(BaseModel):
    """What a chunk adds to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """The next piece of one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    token_ids: list[int] | None = None


class ChatCompletionChunk(BaseModel):
    """Stream chunk of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: OpenAIUsage | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
