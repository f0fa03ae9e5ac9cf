"""Answers of ``POST /v1/responses``; a stream's events carry the same items, see `server.api.responses`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class OutputText(BaseModel):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class ReasoningText(BaseModel):
    """What the model thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class OutputItem(BaseModel):
    """A message, a call, or reasoning."""

    type: Literal["message", "function_call", "reasoning"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["assistant"] | None = None
    content: list[OutputText | ReasoningText] | None = None
    summary: list[Any] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None


class ResponseUsage(BaseModel):
    """Counts of tokens; `cached_tokens` are those of the prompt that came from the prefix cache."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponsesAnswer(BaseModel):
    """The answer, with what was asked for beside it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool
    tool_choice: Any
    tools: list[Any]
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    previous_response_id: None = None
    reasoning: dict[str, Any] | None = None
    store: bool | None = None
    text: dict[str, Any] | None = None
    truncation: Literal["disabled"] = "disabled"
    user: str | None = None
