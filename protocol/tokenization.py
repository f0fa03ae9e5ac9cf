"""``POST /tokenize`` and ``/detokenize``, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from protocol.body import Body
from protocol.chat import MAX_TOOLS, ChatMessage, ChatTool
from protocol.errors import FieldError
from protocol.generation import TokenId

_STRICT = ConfigDict(extra="forbid", strict=True)


class TokenizeRequest(Body):
    """A text (`prompt`) or a conversation (`messages`), to be tokenized.

    A gateway needs `model` to find the server; a server has one model and takes the name as a check.
    """

    model_config = _STRICT

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    """Put the special tokens around the text that the model expects there; by default true for a text, false
    for a conversation, whose template writes them."""
    return_token_strs: bool | None = None
    # of a conversation
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _check(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise FieldError("prompt", "either a prompt or messages")
        if self.messages is not None and self.add_special_tokens:
            raise FieldError("add_special_tokens", "not supported for messages: their template writes them")
        if self.prompt is not None:
            for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"):
                if getattr(self, name):
                    raise FieldError(name, "only for messages")
        if self.add_generation_prompt and self.continue_final_message:
            raise FieldError("continue_final_message", "cannot be combined with add_generation_prompt")
        return self


class TokenizeResponse(BaseModel):
    """The tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    """Tokens to turn into text; special tokens by their names."""

    model_config = _STRICT

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class DetokenizeResponse(BaseModel):
    """The text."""

    prompt: str
