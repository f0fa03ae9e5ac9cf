"""What a request may ask of a model: one set of checks for every way in, HTTP and Python.

`protocol.generation` checks what follows from the options alone; here is what depends on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from protocol.completion import ResumedChoice
from protocol.errors import ApiError, unprocessable
from protocol.generation import OF_TOKEN_IDS, GenerationConfig
from server.text.detokenizer import Detokenizer
from server.text.grammars.source import GrammarError, as_grammar
from server.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from server.text.tokenizer import Tokenizer

_TOO_LONG = "context_length_exceeded"
"""OpenAI's code for a prompt that does not fit."""

_RESUME = "resume.choices"


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The bounds that a model sets."""

    vocab_size: int
    """Rows of the output layer: token ids at or above it do not exist."""
    max_length: int
    """Tokens of prompt and answer together."""


def check_text(size: ModelSize, tokenizer: Tokenizer, text: str, field: str) -> None:
    """Refuse a text that cannot fit, before it costs seconds and gigabytes to tokenise."""
    if len(text) > 2 * size.max_length * tokenizer.vocabulary.longest:  # normalisers may shorten it
        message = f"{field}: {_limit(size)}. However, {len(text)} characters are far more than it can hold"
        raise unprocessable(message, param=field, code=_TOO_LONG)


def encode(tokenizer: Tokenizer, text: str, field: str, *, special: bool = True) -> list[int]:
    """The tokens of `text`; an ApiError where the tokenizer cannot take it."""
    try:
        return tokenizer.encode(text, special=special)
    except ValueError as error:
        raise unprocessable(f"{field}: {error}", param=field) from error


def check_prompt(
    size: ModelSize,
    token_ids: Sequence[int] | np.ndarray,
    new_tokens: int,
    field: str,
    new_field: str | None = None,
) -> None:
    """Refuse a prompt that is empty, names unknown tokens or cannot be continued by `new_tokens`.

    Args:
        size: of the model.
        token_ids: the prompt.
        new_tokens: how many shall come.
        field: what the request calls the prompt.
        new_field: what it calls the number of new tokens, where it sets one: the fault is there if the prompt
            alone fits.
    """
    if not len(token_ids):
        message = "the prompt is empty, and this model begins no text with a token of its own"
        raise unprocessable(f"{field}: {message}", param=field)
    check_tokens(size.vocab_size, token_ids, field)
    if len(token_ids) + new_tokens > size.max_length:
        fits = new_field is not None and len(token_ids) < size.max_length
        raise too_long(size, len(token_ids), new_tokens, new_field if fits and new_field else field)


def too_long(size: ModelSize, prompt_tokens: int, new_tokens: int, field: str) -> ApiError:
    message = (
        f"{field}: {_limit(size)}. However, the prompt has {prompt_tokens} tokens, and {new_tokens} new ones "
        "are asked for"
    )
    return unprocessable(message, param=field, code=_TOO_LONG)


def _limit(size: ModelSize) -> str:
    """The words by which clients recognise OpenAI's error."""
    return f"This model's maximum context length is {size.max_length} tokens"


def check_config(size: ModelSize, config: GenerationConfig, field_of: Callable[[str], str] = str) -> None:
    """Refuse options that name unknown tokens, or leave none to go on with.

    Args:
        field_of: what the request calls an option of `GenerationConfig`.
    """
    pad = [] if config.pad_token_id is None else [config.pad_token_id]
    for option, token_ids in (
        ("stop_token_ids", config.stop_token_ids),
        *((option, token_ids_in(getattr(config, option))) for option in OF_TOKEN_IDS),
        ("eos_token_id", config.eos_token_ids or ()),
        ("pad_token_id", pad),
    ):
        check_tokens(size.vocab_size, token_ids, field_of(option))
    _check_ends(size, config, field_of)
    _check_allowed(config, field_of)


def with_grammar(config: GenerationConfig, field: str = "structured_outputs") -> GenerationConfig:
    """`config` with the form of its answers as a grammar, if it has one.

    A large form takes tens of milliseconds: where others wait, this belongs into a thread.

    Args:
        field: what the request calls the form.

    Raises:
        ApiError: 422, the form exceeds a bound.
    """
    if config.structured_outputs is None:
        return config
    try:
        form = as_grammar(config.structured_outputs)
    except GrammarError as error:
        raise unprocessable(f"{field}: {error}", param=field, code="invalid_grammar") from None
    return config.model_copy(update={"structured_outputs": form})


def _check_ends(size: ModelSize, config: GenerationConfig, field_of: Callable[[str], str]) -> None:
    """Where every token ends an answer, none can be longer than one token."""
    own = [] if config.ignore_eos else config.eos_token_ids or []
    if len(own) + len(config.stop_token_ids) < size.vocab_size:
        return
    if len({*own, *config.stop_token_ids}) == size.vocab_size and (
        config.min_new_tokens or config.num_beams > 1
    ):
        field = field_of("stop_token_ids" if config.stop_token_ids else "eos_token_id")
        message = f"{field}: all {size.vocab_size} tokens end an answer, so that none is left to go on with"
        raise unprocessable(message, param=field)


def _check_allowed(config: GenerationConfig, field_of: Callable[[str], str]) -> None:
    """Some token must be left to choose, as far as the request tells."""
    if config.allowed_token_ids is None:
        return
    excluded = {tokens[0] for tokens in config.bad_words_ids if len(tokens) == 1}
    if config.min_new_tokens:
        excluded |= {*(config.eos_token_ids or ()), *config.stop_token_ids}
    if excluded.issuperset(config.allowed_token_ids):
        field = field_of("allowed_token_ids")
        raise unprocessable(f"{field}: other options exclude every one of these tokens", param=field)


def token_ids_in(value: Collection[int] | Collection[list[int]] | None) -> Collection[int]:
    """Those of an option: of a list, of the keys of a mapping, or of a list of lists; None has none."""
    if not value or isinstance(next(iter(value)), int):
        return cast(Collection[int], value or ())
    return [token_id for part in cast(Collection[list[int]], value) for token_id in part]


def check_tokens(vocab_size: int, token_ids: Collection[int] | np.ndarray, field: str) -> None:
    """Refuse token ids that the model does not have; of an array it costs next to nothing."""
    if not len(token_ids):
        return
    if isinstance(token_ids, np.ndarray):
        lowest, highest = int(token_ids.min()), int(token_ids.max())
    else:
        lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0:
        raise unprocessable(f"{field}: token id {lowest} is negative", param=field)
    if highest >= vocab_size:
        message = f"{field}: token id {highest} is not below the vocabulary size {vocab_size}"
        raise unprocessable(message, param=field)


def check_resume(
    size: ModelSize, config: GenerationConfig, choices: Sequence[ResumedChoice], expected: int
) -> None:
    """Refuse a record of a stream that cannot be one of this request, which has `expected` answers."""
    if len(choices) != expected:
        raise _wrong_resume(f"there are {len(choices)} choices, the request has {expected}")
    most = config.max_new_tokens
    for index, choice in enumerate(choices):
        check_tokens(size.vocab_size, choice.token_ids, _RESUME)
        if len(choice.token_ids) > most:
            raise _wrong_resume(f"answer {index} has more than {most} tokens already")
        if choice.finished:
            continue
        if len(choice.token_ids) == most:
            raise _wrong_resume(f"answer {index} is unfinished but has all of its {most} tokens")
        if choice.token_ids and config.num_beams > 1:
            reason = "beam search gives out finished answers only"
            raise _wrong_resume(f"answer {index} is unfinished but has tokens: {reason}")


def check_goes_on(
    choices: Sequence[ResumedChoice], ends: Collection[int], stop: Sequence[str], vocabulary: Vocabulary
) -> None:
    """Refuse unfinished answers that had come to their end.

    Args:
        choices: as for `check_resume`.
        ends: tokens that end an answer.
        stop: strings that do.
        vocabulary: the bytes of each token.
    """
    for index, choice in enumerate(choices):
        if choice.finished:
            continue
        if found := set(ends).intersection(choice.token_ids):
            raise _wrong_resume(f"answer {index} is unfinished but has token {min(found)}, which ends it")
        if stop:
            writer = Detokenizer(vocabulary, stop)
            writer.feed(choice.token_ids)
            if writer.stopped:
                raise _wrong_resume(f"answer {index} is unfinished but has a stop string, which ends it")


def _wrong_resume(reason: str) -> ApiError:
    return unprocessable(f"{_RESUME}: {reason}", param=_RESUME)
