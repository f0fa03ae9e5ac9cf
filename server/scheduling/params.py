"""How one request wants its tokens chosen, with the model's defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from protocol.generation import GenerationConfig

_SCHEDULED = {
    "max_new_tokens", "n", "num_return_sequences", "num_beams", "early_stopping", "length_penalty",
    "eos_token_id", "pad_token_id", "stop", "stop_token_ids", "ignore_eos", "logprobs", "prompt_logprobs",
    "prompt_lookup_num_tokens", "max_matching_ngram_size", "bad_words",
}  # fmt: skip
"""Options that `SamplingParams` has fields of its own for, and words, which are token ids by then."""


@dataclass(slots=True, frozen=True)
class PromptLookup:
    """Speculative decoding: drafts of at most `num_tokens` tokens (0: none) that followed the longest
    n-gram of at most `max_ngram_size` tokens before."""

    num_tokens: int = 0
    max_ngram_size: int = 3


@dataclass(slots=True, frozen=True)
class SamplingParams:
    """The options of a request as the engine reads them; meanings as in `GenerationConfig`.

    What scheduling goes by are fields of their own; how tokens are chosen it does not know.
    """

    max_new_tokens: int
    num_choices: int = 1
    num_beams: int = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer; empty: none does."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_lookup: PromptLookup = PromptLookup()
    options: dict[str, Any] = field(default_factory=lambda: _chosen(GenerationConfig()))
    """All other fields of `GenerationConfig`: they are for sampling."""

    @property
    def is_constrained(self) -> bool:
        """Whether the answer must follow a grammar."""
        return self.options["structured_outputs"] is not None

    @property
    def uses_beams(self) -> bool:
        return self.num_beams > 1

    @property
    def num_rows(self) -> int:
        """Sequences decoded side by side."""
        return max(self.num_beams, self.num_choices)

    @classmethod
    def of(
        cls,
        config: GenerationConfig,
        model_eos: tuple[int, ...],
        prompt_lookup: PromptLookup = PromptLookup(),
    ) -> SamplingParams:
        """From the wire's options; `model_eos` and `prompt_lookup` are used where the request sets none."""
        own = config.eos_token_ids
        eos = () if config.ignore_eos else tuple(own) if own is not None else model_eos
        return cls(
            max_new_tokens=config.max_new_tokens,
            num_choices=config.num_choices,
            num_beams=config.num_beams,
            early_stopping=config.early_stopping,
            length_penalty=config.length_penalty,
            eos_token_ids=tuple(dict.fromkeys((*eos, *config.stop_token_ids))),
            stop=tuple(config.stop),
            logprobs=config.logprobs,
            prompt_logprobs=config.prompt_logprobs,
            prompt_lookup=_lookup(config, prompt_lookup),
            options=_chosen(config),
        )


def _chosen(config: GenerationConfig) -> dict[str, Any]:
    return config.model_dump(exclude=_SCHEDULED)


def _lookup(config: GenerationConfig, default: PromptLookup) -> PromptLookup:
    if config.num_beams > 1:  # they are reordered at every token
        return PromptLookup()
    tokens, size = config.prompt_lookup_num_tokens, config.max_matching_ngram_size
    return PromptLookup(
        default.num_tokens if tokens is None else tokens, default.max_ngram_size if size is None else size
    )
