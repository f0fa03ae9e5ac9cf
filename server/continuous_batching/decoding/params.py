"""How one request wants its tokens chosen, with the model's defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from protocol.generation import GenerationConfig


@dataclass(slots=True, frozen=True)
class PromptLookup:
    """Speculative decoding: drafts of at most `num_tokens` tokens (0: none) that followed the longest
    n-gram of at most `max_ngram_size` tokens before."""

    num_tokens: int = 0
    max_ngram_size: int = 3


@dataclass(slots=True, frozen=True)
class SamplingParams:
    """The options of a request as the engine reads them; meanings as in `GenerationConfig`."""

    max_new_tokens: int
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int = 1024
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    num_choices: int = 1
    num_beams: int = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer and are suppressed before `min_new_tokens`; empty: none does."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_lookup: PromptLookup = PromptLookup()

    @property
    def uses_beams(self) -> bool:
        return self.num_beams > 1

    @property
    def num_rows(self) -> int:
        """Sequences decoded side by side."""
        return max(self.num_beams, self.num_choices)

    @property
    def is_plain(self) -> bool:
        """Whether beams are continued by the logits alone."""
        held = self.min_new_tokens > 0 and bool(self.eos_token_ids)
        return not (self.do_sample or held or self.logit_bias or self.needs_history)

    @property
    def is_filtered(self) -> bool:
        """Whether, where tokens are drawn, some of them may not be."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0 or self.typical_p < 1.0

    @property
    def needs_history(self) -> bool:
        """Whether the tokens so far change the scores of the next one."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

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
            min_new_tokens=config.min_new_tokens,
            do_sample=config.do_sample,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            typical_p=config.typical_p,
            seed=config.seed,
            repetition_penalty=config.repetition_penalty,
            presence_penalty=config.presence_penalty,
            frequency_penalty=config.frequency_penalty,
            logit_bias=dict(config.logit_bias),
            num_choices=config.num_choices,
            num_beams=config.num_beams,
            early_stopping=config.early_stopping,
            length_penalty=config.length_penalty,
            eos_token_ids=tuple(dict.fromkeys((*eos, *config.stop_token_ids))),
            stop=tuple(config.stop),
            logprobs=config.logprobs,
            prompt_lookup=_lookup(config, prompt_lookup),
        )


def _lookup(config: GenerationConfig, default: PromptLookup) -> PromptLookup:
    if config.num_beams > 1:  # they are reordered at every token
        return PromptLookup()
    tokens, size = config.prompt_lookup_num_tokens, config.max_matching_ngram_size
    return PromptLookup(
        default.num_tokens if tokens is None else tokens, default.max_ngram_size if size is None else size
    )
