"""Messages and tools of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.body import Body, check_type
from protocol.errors import FieldError
from protocol.structured import AnswerFormat

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]

MAX_TOOLS = 1024

_STRICT = ConfigDict(extra="forbid", strict=True)


class TextPart(Body):
    """A piece of a message; pieces of another type are refused."""

    model_config = _STRICT

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    """The assistant's own words of an earlier turn, in place of a text."""
    cache_control: dict[str, Any] | None = None
    """Bookkeeping at other providers: prompts are cached by their tokens here."""

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        return check_type(data, ("text", "refusal"), "messages are text")

    @model_validator(mode="after")
    def _check_text(self) -> TextPart:
        if getattr(self, self.type) is None:
            raise FieldError(self.type, f"required in a part of type {self.type!r}")
        return self

    @property
    def words(self) -> str:
        """What it says."""
        return (self.text if self.type == "text" else self.refusal) or ""


class CalledFunction(Body):
    """What an earlier turn called."""

    model_config = _STRICT

    name: str
    arguments: str
    """A JSON object, as text."""
    parsed_arguments: Any = None
    """What helpers of the SDKs made of it; they send it back."""


class MessageToolCall(Body):
    """A call of an earlier turn."""

    model_config = _STRICT

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
    """What streams number calls by; some clients send it back."""


class ChatMessage(Body):
    """One turn of a conversation.

    Fields that an assistant's turn had in an answer are taken back; those that only the provider looks
    at (`refusal`, `annotations`, `audio`) change nothing.
    """

    model_config = _STRICT

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The same, as some servers call it."""
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    parsed: Any = None
    """What helpers of the SDKs made of the content; they send it back."""
    function_call: None = None
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatMessage:
        if self.tool_calls and self.role != "assistant":
            raise FieldError("tool_calls", "only of the assistant")
        if self.role == "tool" and self.tool_call_id is None:
            raise FieldError("tool_call_id", "required where the role is 'tool'")
        if self.content == []:
            raise FieldError("content", "a list of at least one part")
        if self.content is None and not (self.role == "assistant" and self._says_otherwise):
            unless = ", unless the assistant called tools" if self.role == "assistant" else ""
            raise FieldError("content", f"required where the role is {self.role!r}{unless}")
        return self

    @property
    def _says_otherwise(self) -> bool:
        """Whether there is something beside the content."""
        return bool(self.tool_calls or self.reasoning_content or self.reasoning or self.refusal)

    def texts(self) -> list[str] | None:
        """The content in pieces."""
        if isinstance(self.content, list):
            return [part.words for part in self.content]
        return None if self.content is None else [self.content]


class FunctionDefinition(Body):
    """A function that the model may call."""

    model_config = _STRICT

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None


class ChatTool(Body):
    """A tool; there are functions alone."""

    model_config = _STRICT

    type: Literal["function"]
    function: FunctionDefinition
    cache_control: dict[str, Any] | None = None


class NamedFunction(BaseModel):
    """The function to call."""

    model_config = _STRICT

    name: str


class NamedChoice(BaseModel):
    """Asks for a call of one tool."""

    model_config = _STRICT

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedChoice

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

ChatFinishReason = Literal["stop", "length", "tool_calls"]


class NamedSchema(BaseModel):
    """A JSON schema, as OpenAI wraps it; answers follow it whether or not it is `strict`."""

    model_config = _STRICT

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(AnswerFormat):
    """What the text of the answer must be."""

    schema_field = "json_schema"
    json_schema: NamedSchema | None = None

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        return None if self.json_schema is None else self.json_schema.schema_


class AnswerFunction(BaseModel):
    """What an answer calls; in a stream, the next piece of it."""

    name: str | None = None
    arguments: str | None = None


class AnswerToolCall(BaseModel):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: AnswerFunction


class ToolCallDelta(BaseModel):
    """What a chunk adds to a call: its first chunk has id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: AnswerFunction
