"""``POST /v1/messages`` and ``/v1/messages/count_tokens``, Anthropic's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from protocol.body import Body, check_type
from protocol.chat import MAX_TOOLS, ReasoningEffort, ToolName
from protocol.completion import MAX_PRIORITY, CacheSalt, Resume
from protocol.errors import FieldError
from protocol.generation import MAX_STOPS

BILLING = "x-anthropic-billing-header:"
"""Begins a piece of the system prompt in which some clients send labels for their provider's bill. They
change with every request and say nothing to a model: a prompt that began with them would never be cached,
so they are left out."""

MIN_THINKING_TOKENS = 1024

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_BLOCKS = ("text", "tool_use", "tool_result", "thinking", "redacted_thinking")
_NEEDS = {
    "text": ("text",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
}


class MessageBlock(Body):
    """A piece of a message: text, a call, its result, or reasoning; other types are refused."""

    model_config = _STRICT

    type: Literal["text", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    text: str | None = None
    citations: list[Any] | None = None
    # of a call
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    caller: Any = None
    # of its result
    tool_use_id: str | None = None
    content: str | list[MessageBlock] | None = None
    is_error: bool | None = None
    # of reasoning
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    # prompts are cached by their tokens: nothing has to be marked
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        return check_type(data, _BLOCKS)

    @model_validator(mode="after")
    def _check(self) -> MessageBlock:
        for name in _NEEDS[self.type]:
            if getattr(self, name) is None:
                raise FieldError(name, f"required in a block of type {self.type!r}")
        for block in self.content if isinstance(self.content, list) else ():
            if block.type != "text":
                raise FieldError("content", f"a result is text, not {block.type!r}")
        return self


class MessageParam(Body):
    """One turn."""

    model_config = _STRICT

    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[MessageBlock], Field(min_length=1)]


class SystemBlock(Body):
    """A piece of the system prompt."""

    model_config = _STRICT

    type: Literal["text"]
    text: str
    citations: list[Any] | None = None
    cache_control: dict[str, Any] | None = None


class MessageTool(Body):
    """A function that the model may call; Anthropic's own tools are refused."""

    model_config = _STRICT

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    """Input is always streamed as it comes."""

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        return check_type(data, ("custom",), "tools are the client's own")


class MessageToolChoice(Body):
    """Which tool to call."""

    model_config = _STRICT

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessageThinking(Body):
    """Whether the model reasons before it answers."""

    model_config = _STRICT

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    """A wish: nothing ends reasoning early."""
    display: Literal["summarized"] | None = None

    @model_validator(mode="after")
    def _check(self) -> MessageThinking:
        if self.type == "enabled":
            if self.budget_tokens is None:
                raise FieldError("budget_tokens", "required where thinking is enabled")
            if self.budget_tokens < MIN_THINKING_TOKENS:
                raise FieldError("budget_tokens", f"at least {MIN_THINKING_TOKENS}")
        elif self.budget_tokens is not None:
            raise FieldError("budget_tokens", "only where thinking is enabled")
        return self


class MessageFormat(Body):
    """What the text of the answer must be: JSON that follows a schema."""

    model_config = _STRICT

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Body):
    """The form of the answer, and how much the model reasons for it."""

    model_config = _STRICT

    format: MessageFormat | None = None
    effort: ReasoningEffort | None = None


class MessageMetadata(Body):
    """Labels."""

    model_config = _STRICT

    user_id: str | None = None


class CountTokensRequest(Body):
    """Body of ``POST /v1/messages/count_tokens``: a conversation."""

    model_config = _STRICT

    model: str
    messages: Annotated[list[MessageParam], Field(min_length=1)]
    system: str | list[SystemBlock] | None = None
    tools: Annotated[list[MessageTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: MessageThinking | None = None
    cache_control: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    # what changes nothing as null, and is not supported otherwise
    container: None = None
    context_management: None = None
    mcp_servers: None = None
    inference_geo: None = None

    @model_validator(mode="after")
    def _check_choice(self) -> CountTokensRequest:
        choice = self.tool_choice
        if choice is not None and choice.type in ("any", "tool") and not self.tools:
            raise FieldError("tool_choice", "needs tools")
        return self


class MessagesRequest(CountTokensRequest):
    """Body of ``POST /v1/messages``."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)] | None
    ) = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    # labels that change no token
    metadata: MessageMetadata | None = None
    service_tier: str | None = None
    # beyond Anthropic, as on /v1/chat/completions
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: CacheSalt | None = None
    resume: SkipJsonSchema[Resume | None] = None

    @model_validator(mode="after")
    def _check_thinking(self) -> MessagesRequest:
        thinking = self.thinking
        if thinking is not None and (thinking.budget_tokens or 0) >= self.max_tokens:
            raise FieldError("thinking.budget_tokens", f"must be below max_tokens, {self.max_tokens}")
        return self


class AnswerBlock(BaseModel):
    """A piece of an answer."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None


class MessageUsage(BaseModel):
    """Counts of tokens; those that came from the prefix cache are not among `input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessageAnswer(BaseModel):
    """The answer; in a stream its pieces come as events, see `server.api.messages`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCount(BaseModel):
    """Answer of ``/v1/messages/count_tokens``."""

    input_tokens: int
