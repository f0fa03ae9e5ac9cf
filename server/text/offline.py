"""What the Python interfaces of both servers, without HTTP, take and give."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index

import numpy as np
from pydantic import ValidationError

from protocol.completion import FinishReason
from protocol.errors import from_validation
from protocol.generation import GenerationConfig
from server.text import checks
from server.text.bad_words import with_tokens
from server.text.logprob import TokenLogprob
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """One answer to a prompt."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of the prompt's tokens from the second on, where they are wanted."""


@dataclass(slots=True)
class Generation:
    """A prompt with its answers, in order."""

    prompt_token_ids: list[int]
    answers: list[Answer] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.answers[0].text


def start_generations(
    prompts: Sequence[str | list[int]],
    config: GenerationConfig | Sequence[GenerationConfig] | None,
    tokenizer: Tokenizer,
    size: checks.ModelSize,
) -> tuple[list[Generation], list[GenerationConfig], list[np.ndarray]]:
    """A generation without answers, the options, and the int32 tokens for each of `prompts`.

    Args:
        prompts: texts or token ids, checked as those of HTTP requests are.
        config: options for all prompts, or one for each; none are the defaults.
        tokenizer: for texts.
        size: the bounds that the model sets.

    Raises:
        TypeError: something is neither a prompt nor a configuration.
        ValueError: not as many configurations as prompts.
        ApiError: a prompt or an option that is out of range, or that the model cannot take; names it.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of prompts, got one text: put it into a list")
    if config is None or isinstance(config, GenerationConfig):
        configs = [_checked(config or GenerationConfig(), tokenizer, size)] * len(prompts)
    elif isinstance(config, list | tuple):
        configs = [_checked(one, tokenizer, size) for one in config]
    else:
        raise TypeError(f"config must be a GenerationConfig or a list of them, got {type(config).__name__}")
    if len(configs) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(configs)} configurations")
    arrays = []
    for i, (prompt, options) in enumerate(zip(prompts, configs, strict=True)):
        place = f"prompts[{i}]"
        token_ids = _token_ids(prompt, tokenizer, size, place)
        checks.check_prompt(size, token_ids, options.max_new_tokens, place, "max_new_tokens")
        arrays.append(token_ids)
    return [Generation(token_ids.tolist()) for token_ids in arrays], configs, arrays


def _checked(config: GenerationConfig, tokenizer: Tokenizer, size: checks.ModelSize) -> GenerationConfig:
    """`config`, validated again: a copy that pydantic made may hold anything. Its words are tokens then."""
    if not isinstance(config, GenerationConfig):
        raise TypeError(f"config must hold GenerationConfigs, got a {type(config).__name__}")
    try:
        config = GenerationConfig.model_validate(config.model_dump(warnings=False))
    except ValidationError as error:
        raise from_validation(error) from None
    checks.check_config(size, config)
    return with_tokens(checks.with_grammar(config), tokenizer)


def _token_ids(
    prompt: str | Sequence[int], tokenizer: Tokenizer, size: checks.ModelSize, place: str
) -> np.ndarray:
    """int32 [tokens]; made once, for all that follows is quick with an array."""
    if isinstance(prompt, str):
        checks.check_text(size, tokenizer, prompt, place)
        return np.array(checks.encode(tokenizer, prompt, place), np.int32)
    try:
        given = list(prompt)
        tokens = np.frombuffer(array("i", given), np.int32)  # takes numpy's and torch's integers, too
        if any(isinstance(given[i], bool) for i in np.flatnonzero(tokens <= 1)):
            raise TypeError("a bool is not a token id")
        return tokens
    except OverflowError:
        checks.check_tokens(size.vocab_size, [index(token) for token in given], place)
        raise
    except TypeError as error:
        raise TypeError(f"{place} must be a text or a list of token ids: {error}") from None
