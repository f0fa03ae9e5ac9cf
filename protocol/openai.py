"""Requests to the OpenAI-compatible routes ``/v1/completions`` and ``/v1/chat/completions``.

Beside OpenAI's own fields they take the options of `GenerationConfig` that OpenAI lacks,
under the names that the field uses for them.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from protocol.body import Body
from protocol.chat import MAX_TOOLS, ChatMessage, ChatTool, ReasoningEffort, ResponseFormat, ToolChoice
from protocol.completion import MAX_PRIORITY, CacheSalt, Resume, TokenPrompt
from protocol.errors import FieldError, unprocessable
from protocol.generation import MAX_CHOICES, MAX_LOGPROBS, AtMostBiased, GenerationConfig
from protocol.structured import StructuredOutputs, check_old_names

OpenAIPrompt = (
    str
    | TokenPrompt
    | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    | Annotated[list[TokenPrompt], Field(min_length=1, fail_fast=True)]
)
"""An empty text is one where the model begins texts with a token of its own."""


class StreamOptions(Body):
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

    @property
    def asks(self) -> bool:
        """Whether any option is set."""
        return self.include_usage or self.continuous_usage_stats


class SharedRequest(Body):
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
    logit_bias: Annotated[dict[str, float], AtMostBiased] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    # labels that change no token
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # what changes nothing as it is here, and is not supported otherwise
    use_beam_search: Literal[False] | None = None
    include_stop_str_in_output: Literal[False] | None = None
    spaces_between_special_tokens: Literal[True] | None = None
    truncate_prompt_tokens: None = None
    return_tokens_as_token_ids: Literal[False] | None = None
    logits_processors: None = None
    kv_transfer_params: None = None
    vllm_xargs: None = None
    # beyond OpenAI, as in GenerationConfig
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    num_beams: int | None = None
    early_stopping: bool | Literal["never"] | None = None
    length_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    prompt_lookup_num_tokens: int | None = None
    max_matching_ngram_size: int | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    cache_salt: CacheSalt | None = None
    resume: SkipJsonSchema[Resume | None] = None

    @model_validator(mode="before")
    @classmethod
    def _check_old_names(cls, data: Any) -> Any:
        data = check_old_names(data)
        if isinstance(data, dict) and data.get("use_beam_search") is True:
            raise FieldError("use_beam_search", "is not supported; num_beams asks for beams")
        return data

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and self.stream_options.asks and not self.stream:
            raise FieldError("stream_options", "only for a stream")
        return self

    @property
    def scored_prompt(self) -> int | None:
        """How many of the likeliest tokens to report at each place of the prompt; None: no report."""
        return self.prompt_logprobs

    def generation_config(self, max_new_tokens: int, logprobs: int | None) -> GenerationConfig:
        """These options in the terms of `GenerationConfig`.

        OpenAI's default is to sample at temperature 1 with a fresh seed; temperature 0 is greedy,
        and so is beam search unless a temperature is given. Several greedy answers are equal: they are
        drawn from the likeliest token alone.

        Raises:
            pydantic.ValidationError: an option is out of range or contradicts another.
            ApiError: 422, `min_tokens` does.
        """
        if self.min_tokens is not None and self.min_tokens > max_new_tokens:
            message = f"min_tokens: {self.min_tokens} exceeds {max_new_tokens}, the most tokens of the answer"
            raise unprocessable(message, param="min_tokens")
        greedy = is_greedy(self.temperature, self.num_beams or 1, self.n or 1)
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
            "prompt_logprobs": self.scored_prompt,
        }
        shared = SharedRequest.model_fields.keys() & GenerationConfig.model_fields.keys()
        options |= {name: getattr(self, name) for name in shared - options.keys()}
        if options["top_k"] == -1:
            options["top_k"] = 0
        if not greedy and self.temperature == 0:
            options |= {"top_k": 1, "top_p": None, "min_p": None, "typical_p": None}
        return GenerationConfig.model_validate(options)


def is_greedy(temperature: Any, num_beams: int, n: int) -> bool:
    """Whether a request with these options searches for the likeliest tokens rather than draw them.

    Beams do unless a temperature is given; `n` answers at temperature 0 are drawn from the likeliest token.
    """
    if num_beams > 1:
        return temperature is None or temperature == 0
    return bool(temperature == 0) and n == 1


class OpenAICompletionRequest(SharedRequest):
    """Body of ``POST /v1/completions``."""

    prompt: OpenAIPrompt
    """null: as OpenAI has it, the beginning of a text."""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: Literal[True] | None = None
    suffix: str | None = None
    prompt_embeds: None = None

    @model_validator(mode="before")
    @classmethod
    def _begin_a_text(cls, data: Any) -> Any:
        begins = isinstance(data, dict) and "prompt" in data and data["prompt"] is None
        return data | {"prompt": ""} if begins else data

    @model_validator(mode="after")
    def _check(self) -> OpenAICompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise FieldError("best_of", "supported only where it equals n")
        if self.suffix:
            raise FieldError("suffix", "not supported")
        return self

    @property
    def scored_prompt(self) -> int | None:
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in wanted if count is not None), default=None)


class ChatCompletionRequest(SharedRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    # what changes nothing as it is here, and is not supported otherwise
    functions: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1)] | None = None
    verbosity: Literal["medium"] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    moderation: None = None
    add_special_tokens: Literal[False] | None = None
    chat_template: None = None
    documents: None = None
    echo: Literal[False] | None = None
    include_reasoning: Literal[True] | None = None
    mm_processor_kwargs: None = None
    media_io_kwargs: None = None
    # beyond OpenAI, as vLLM has them
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatCompletionRequest:
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise FieldError("tool_choice", "needs tools")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise FieldError("max_tokens", f"differs from max_completion_tokens {self.max_completion_tokens}")
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs", "needs logprobs to be true")
        return self
