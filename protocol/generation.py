"""How tokens are chosen: the options that one request may set.

Names and meanings are those of ``transformers.GenerationConfig``; what transformers lacks
(``stop``, ``logprobs``, ``presence_penalty``, …) has the meaning of the OpenAI API.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema

from protocol.body import failing_fast, take_as_json
from protocol.errors import FieldError
from protocol.structured import StructuredOutputs, check_old_names

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_LOOKUP_TOKENS = 64
MAX_NGRAM_SIZE = 16
MAX_UNREPEATED_NGRAM = 256
"""Largest `no_repeat_ngram_size`: the time of a step grows with it."""
MIN_TEMPERATURE = 1e-6
"""Where scores are divided by less, float32 tells nothing apart any more."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenKey = Annotated[int, Field(ge=0, lt=2**31, strict=False)]
"""A token id as the key of a JSON object, where it is a string."""

MAX_ALLOWED = 2**18
"""Tokens that may be named as the only ones: no vocabulary is much larger."""
MAX_BAD_WORDS = 128
MAX_BAD_SEQUENCES = 2 * MAX_BAD_WORDS
"""Sequences of tokens that may be forbidden: a word is two, with and without a space before it."""
MAX_BAD_TOKENS = 16
"""Tokens of one such sequence."""

MAX_BIASED = 2**14
"""Tokens whose scores `logit_bias` may change."""


def _check_biased(value: Any) -> Any:
    """Before its entries are looked at: each of them might be at fault."""
    if isinstance(value, dict) and len(value) > MAX_BIASED:
        raise ValueError(f"{len(value)} tokens exceed the {MAX_BIASED} that may be named")
    return value


AtMostBiased = BeforeValidator(_check_biased)

OF_TOKEN_IDS = ("logit_bias", "bad_words_ids", "allowed_token_ids")
"""Options of sampling that hold token ids (or have them for keys): those of the model, as is checked."""


class GenerationConfig(BaseModel):
    """The options of one completion; every field is optional and ``null`` means its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    # length
    max_new_tokens: Annotated[int, Field(ge=1, lt=2**31)] = 32
    min_new_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    # sampling
    do_sample: bool = False
    temperature: Annotated[
        float, Field(ge=0.0, le=1e6, description=f"0, or at least {MIN_TEMPERATURE:g}: less is taken as that")
    ] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31, description="0: off")] = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    typical_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1024
    # penalties and biases
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] = 0.0
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=MAX_UNREPEATED_NGRAM, description="0: off")] = 0
    logit_bias: Annotated[dict[TokenKey, Annotated[float, Field(ge=-100.0, le=100.0)]], AtMostBiased] = {}
    # form of the answer
    structured_outputs: StructuredOutputs | None = None
    # what may be said at all
    bad_words: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=MAX_BAD_WORDS)
    ] = []
    bad_words_ids: Annotated[
        list[Annotated[list[TokenId], Field(min_length=1, max_length=MAX_BAD_TOKENS)]],
        Field(max_length=MAX_BAD_SEQUENCES),
    ] = []
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=MAX_ALLOWED)] | None = None
    # several answers
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    num_beams: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    num_return_sequences: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: Annotated[float, Field(ge=-10.0, le=10.0)] = 1.0
    # speculative decoding: changes the speed of an answer, not its tokens
    prompt_lookup_num_tokens: (
        Annotated[int, Field(ge=0, le=MAX_LOOKUP_TOKENS, description="0: off; null: as the server is set")]
        | None
    ) = None
    max_matching_ngram_size: Annotated[int, Field(ge=1, le=MAX_NGRAM_SIZE)] | None = None
    # stopping
    eos_token_id: TokenId | list[TokenId] | None = None
    pad_token_id: TokenId | None = None
    stop: list[str] = []
    stop_token_ids: list[TokenId] = []
    ignore_eos: bool = False
    # reporting
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: (
        Annotated[
            int,
            Field(
                ge=0,
                le=MAX_LOGPROBS,
                description="likeliest tokens to report at each place of the prompt",
            ),
        ]
        | None
    ) = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return failing_fast(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _take_as_json(cls, data: Any) -> Any:
        return take_as_json(cls, check_old_names(data))

    @field_validator("temperature")
    @classmethod
    def _raise_to_least(cls, value: float) -> float:
        return max(value, MIN_TEMPERATURE) if value else value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _check_stops(cls, value: list[str]) -> list[str]:
        if len(value) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are accepted, got {len(value)}")
        if "" in value:
            raise ValueError("a stop string must not be empty")
        if any("\ud800" <= character <= "\udfff" for stop in value for character in stop):
            raise ValueError("a stop string must not hold half of a surrogate pair")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> GenerationConfig:
        if self.min_new_tokens > self.max_new_tokens:
            raise FieldError(
                "min_new_tokens", f"{self.min_new_tokens} exceeds max_new_tokens, {self.max_new_tokens}"
            )
        if self.n > 1 and self.num_return_sequences > 1:
            raise FieldError("num_return_sequences", "means the same as n: set one of them")
        if self.num_beams > 1:
            if self.num_choices > self.num_beams:
                raise FieldError(
                    self.choices_option, f"{self.num_choices} exceeds num_beams, {self.num_beams}"
                )
            for lookup in ("prompt_lookup_num_tokens", "max_matching_ngram_size"):
                if getattr(self, lookup):
                    raise FieldError(lookup, "cannot be combined with num_beams")
        elif self.num_choices > 1 and not self.do_sample:
            reason = "several answers need sampling or num_beams: greedy ones would be equal"
            raise FieldError(self.choices_option, reason)
        if self.structured_outputs is not None:
            reason = "cannot be combined with structured_outputs: where an answer ends follows from its form"
            if self.ignore_eos:
                raise FieldError("ignore_eos", reason)
            if self.min_new_tokens:
                raise FieldError("min_new_tokens", reason)
        if self.do_sample and self.temperature == 0.0:
            raise FieldError("temperature", "must be above 0 when do_sample is true")
        return self

    @property
    def num_choices(self) -> int:
        """How many answers the response holds."""
        return max(self.n, self.num_return_sequences)

    @property
    def choices_option(self) -> str:
        """The option that sets `num_choices`."""
        return "num_return_sequences" if self.num_return_sequences > 1 else "n"

    @property
    def rows_option(self) -> str:
        """The option that asks for `num_rows`."""
        return "num_beams" if self.num_beams > 1 else self.choices_option

    @property
    def num_rows(self) -> int:
        """How many sequences are decoded side by side (beams or samples)."""
        return max(self.num_beams, self.num_choices)

    @property
    def eos_token_ids(self) -> list[int] | None:
        """The end-of-sequence ids that the request set, or None for those of the model."""
        if self.eos_token_id is None:
            return None
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
