"""``POST /v1/responses``: requests. What OpenAI keeps between requests is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from protocol.body import Body, check_type
from protocol.chat import MAX_TOOLS, ReasoningEffort, ToolName
from protocol.completion import MAX_PRIORITY, CacheSalt, Resume
from protocol.errors import FieldError
from protocol.structured import AnswerFormat

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ResponseTextPart(Body):
    """A piece of a message; pieces of another type are refused."""

    model_config = _STRICT

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        kind = data.get("type") if isinstance(data, dict) else None
        if kind in ("input_image", "input_file", "input_audio"):
            raise FieldError("type", f"{kind!r} is not supported: messages are text")
        return data

    @model_validator(mode="after")
    def _check_text(self) -> ResponseTextPart:
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise FieldError(name, f"required in a part of type {self.type!r}")
        return self

    @property
    def words(self) -> str:
        """What it says."""
        return (self.refusal if self.type == "refusal" else self.text) or ""


ResponseContent = str | list[ResponseTextPart]


class ResponseItem(Body):
    """One item of the input: a message, a call, its result, or reasoning of an earlier turn."""

    model_config = _STRICT

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    # of a message
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: ResponseContent | None = None
    phase: str | None = None
    # of a call and its result
    call_id: str | None = None
    name: str | None = None
    namespace: None = None
    arguments: str | None = None
    output: ResponseContent | None = None
    # of reasoning
    summary: list[ResponseTextPart] | None = None
    encrypted_content: str | None = None
    # what an answer had
    id: str | None = None
    status: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        return check_type(data, _NEEDS)

    @model_validator(mode="after")
    def _check(self) -> ResponseItem:
        for name in _NEEDS[self.type]:
            if getattr(self, name) is None:
                raise FieldError(name, f"required in an item of type {self.type!r}")
        for name in ("content", "output"):
            if getattr(self, name) == [] and self.type != "reasoning":
                raise FieldError(name, "a list of at least one part")
        return self


_NEEDS: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class ResponseTool(Body):
    """A function that the model may call; OpenAI's own tools are refused."""

    model_config = _STRICT

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        return check_type(data, ("function",), "tools are functions")


class ResponseNamedChoice(BaseModel):
    """Asks for a call of one tool."""

    model_config = _STRICT

    type: Literal["function"]
    name: str


class ResponseReasoning(Body):
    """How the model reasons."""

    model_config = _STRICT

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponseReasoning:
        for name in ("summary", "generate_summary"):
            if getattr(self, name) not in (None, "auto"):  # auto leaves it to the model whether there is one
                raise FieldError(name, "not supported: reasoning is given in full")
        return self


class TextFormat(AnswerFormat):
    """What the text of the answer must be."""

    schema_field = "schema"
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        return self.schema_


class ResponseText(Body):
    """The format of the answer's text."""

    model_config = _STRICT

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseStreamOptions(Body):
    """Options of a stream."""

    model_config = _STRICT

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(Body):
    """Body of ``POST /v1/responses``."""

    model_config = _STRICT

    model: str
    input: Annotated[str, Field(min_length=1)] | Annotated[list[ResponseItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ResponseReasoning | None = None
    text: ResponseText | None = None
    truncation: Literal["disabled"] | None = None
    # labels that change no token
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # what there is to refuse by name
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    include: list[str] | None = None
    prompt: Any = None
    max_tool_calls: int | None = None
    context_management: None = None
    moderation: None = None
    top_logprobs: int | None = None
    # beyond OpenAI, as on /v1/chat/completions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    skip_special_tokens: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: CacheSalt | None = None
    resume: SkipJsonSchema[Resume | None] = None

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        for name, reason in _REFUSED.items():
            if getattr(self, name):
                raise FieldError(name, f"not supported: {reason}")
        for name in self.include or ():
            if name != "reasoning.encrypted_content":  # of models that hide their reasoning; these do not
                raise FieldError("include", f"{name!r} is not supported")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise FieldError("tool_choice", "needs tools")
        return self


_REFUSED = {
    "previous_response_id": "answers are not kept; send the whole conversation as 'input'",
    "conversation": "conversations are not kept; send the whole conversation as 'input'",
    "background": "an answer comes in the response to its request",
    "prompt": "there are no stored prompts",
    "max_tool_calls": "tools are called by the client",
    "top_logprobs": "use /v1/chat/completions",
}
