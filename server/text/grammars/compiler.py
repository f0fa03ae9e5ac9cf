"""Grammars for the tokens of one model, by llguidance.

Source: https://github.com/guidance-ai/llguidance: an Earley parser over lexemes, whose masks over the
vocabulary take microseconds, so that nothing is made in advance for a grammar.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from server.text.grammars.source import GrammarError, grammar_source
from server.text.grammars.state import GrammarState, mask_words
from utils.messages import one_line

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class Grammar:
    """What an answer is held to.

    Its states share an automaton of llguidance, and only one of them can work with it at a time. Threads that
    work with states side by side hold `lock` meanwhile. Without it they would wait for each other inside
    llguidance, and keep Python's interpreter from all other threads.

    Args:
        matcher: at the beginning.
        ends: tokens that end an answer.
        model_ends: tokens that end one as the model has it; within an answer they stand for nothing.
        mask_words: int32 words of a mask; there may be more than the logits have columns for.
    """

    def __init__(
        self, matcher: LLMatcher, ends: Sequence[int], model_ends: Sequence[int], mask_words: int
    ) -> None:
        self._matcher = matcher
        self.mask_words = mask_words
        self.lock = threading.Lock()
        self._ends = tuple(ends)
        self._never = tuple(set(model_ends) - set(ends))

    def begin(self) -> GrammarState:
        """For a new answer."""
        return GrammarState(self._matcher.deep_copy(), self._ends, self._never)


@dataclass(frozen=True, slots=True)
class GrammarTokens:
    """What grammars need to know of a tokenizer.

    Attributes:
        json: the tokenizer as the library tokenizers writes it; None: it has none of that library.
        count: tokens of its vocabulary.
        end: the token that ends a text as the tokenizer has it.
    """

    json: str | None
    count: int
    end: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> GrammarTokens:
        """Those of a tokenizer of transformers; takes a moment for a large vocabulary."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend = copy(backend)
            backend.no_padding()
            backend.no_truncation()
        return cls(None if backend is None else backend.to_str(), len(tokenizer), tokenizer.eos_token_id)


class GrammarCompiler:
    """Compiles grammars, on any thread.

    Args:
        tokens: of the model's tokenizer.
        vocab_size: columns of the logits.
        ends: tokens that end an answer as the model has it.
    """

    def __init__(self, tokens: GrammarTokens, vocab_size: int, ends: Sequence[int]) -> None:
        self._source = tokens
        self._vocab_size = max(vocab_size, tokens.count)
        self._ends = tuple(ends)
        self._tokens: LLTokenizer | None = None
        self._making = threading.Lock()

    def compile(self, asked: dict[str, Any], ends: Sequence[int]) -> Grammar:
        """The grammar for the fields of a `protocol.structured.StructuredOutputs`.

        Args:
            ends: tokens that end an answer of this request.

        Raises:
            GrammarError: it cannot be honoured.
        """
        from llguidance import LLMatcher

        if not ends:
            raise GrammarError("structured outputs need a token that ends an answer, and this model has none")
        matcher = LLMatcher(self._tokenizer(), grammar_source(asked), log_level=0)
        if matcher.is_error():
            raise GrammarError(_brief(matcher.get_error()))
        return Grammar(matcher, ends, self._ends, mask_words(self._vocab_size))

    def prepare(self) -> None:
        """Do what takes long before the first grammar is asked for: a second or two for 150,000 tokens.

        Raises:
            GrammarError: this model's tokenizer cannot follow grammars.
        """
        self._tokenizer()

    def _tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance has it, made once."""
        from llguidance import LLTokenizer

        source = self._source
        with self._making:
            if self._tokens is None:
                ends = list(self._ends) or source.end
                try:
                    if source.json is None:
                        raise ValueError("it is none of the library tokenizers")
                    self._tokens = LLTokenizer(source.json, n_vocab=self._vocab_size, eos_token=ends)
                except ValueError as error:
                    reason = f"this model's tokenizer cannot follow grammars: {one_line(error)}"
                    raise GrammarError(reason) from None
            return self._tokens


def _brief(text: str) -> str:
    """An error of llguidance on one line, without the place in a grammar that may be ours."""
    message = re.split(r"\n\s*1 \| |\n\n", text.strip())[0]
    message = re.sub(r"^at \d+\(\d+\): |^\d+\(\d+\): ", "", message)
    message = message.removeprefix("failed to compile JSON schema: ")
    message = re.sub(r"^Unimplemented keys: \[(.*)\]", r"keywords that are not supported: \1", message)
    message = re.sub(
        r"^Value for 'multipleOf' has too many digits: .*",
        "multipleOf: some decimals, such as 0.07 and 0.53, are not supported",
        message,
    )
    return " ".join(message.split())[:500]
