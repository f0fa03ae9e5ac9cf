"""`bad_words`: from words to the sequences of tokens that stand for them."""

from __future__ import annotations

from protocol.errors import unprocessable
from protocol.generation import MAX_BAD_SEQUENCES, MAX_BAD_TOKENS, GenerationConfig
from server.text.tokenizer import Tokenizer


def with_tokens(config: GenerationConfig, tokenizer: Tokenizer, field: str = "bad_words") -> GenerationConfig:
    """`config` with its words as token ids beside those that it has already.

    A word is forbidden as it is tokenised with a space before it and without, as vLLM does.

    Args:
        field: what the request calls the words.

    Raises:
        ApiError: 422, a word cannot be forbidden; says why.
    """
    if not config.bad_words:
        return config
    sequences = list(config.bad_words_ids)
    for word in config.bad_words:
        for text in (word.lstrip(), " " + word.lstrip()):
            try:
                tokens = tokenizer.encode(text, special=False)
            except ValueError as error:
                raise unprocessable(f"{field}: {word!r}: {error}", param=field) from error
            if len(tokens) > MAX_BAD_TOKENS:
                message = f"{field}: {word!r} has {len(tokens)} tokens; at most {MAX_BAD_TOKENS} are accepted"
                raise unprocessable(message, param=field)
            if tokens and tokens not in sequences:
                sequences.append(tokens)
    if len(sequences) > MAX_BAD_SEQUENCES:
        message = f"{field}: with bad_words_ids more than {MAX_BAD_SEQUENCES} sequences of tokens"
        raise unprocessable(message, param=field)
    return config.model_copy(update={"bad_words": [], "bad_words_ids": sequences})
