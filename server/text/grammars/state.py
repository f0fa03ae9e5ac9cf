"""Where one answer stands in its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from server.text.grammars.source import GrammarError

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

WORD_BITS = 32


def mask_words(vocab_size: int) -> int:
    """int32 words of a mask with a bit for each token."""
    return -(-vocab_size // WORD_BITS)


def excluded_tokens(mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """bool [vocab_size], contiguous: the tokens that `mask`, int32 [words], does not allow."""
    inverted = ~mask.view(np.uint8)  # while it is small
    return np.unpackbits(inverted, count=vocab_size, bitorder="little").view(bool)


class GrammarState:
    """Follows the tokens of one answer, forward and back.

    Args:
        matcher: its own.
        ends: tokens that end the answer; allowed where the grammar is satisfied.
        never: tokens that are allowed nowhere.
    """

    def __init__(self, matcher: LLMatcher, ends: tuple[int, ...], never: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._end_bits = [_word_and_bit(token) for token in ends]
        self._never_bits = [_word_and_bit(token) for token in never]
        self._tokens: list[int] = []

    def __len__(self) -> int:
        """Tokens of the answer so far."""
        return len(self._tokens)

    def advance(self, tokens: Sequence[int]) -> None:
        """Take the answer's next tokens.

        Raises:
            GrammarError: they are none that the grammar allows, or it has become too complex.
        """
        if tokens and not self._matcher.consume_tokens(list(tokens)):
            raise GrammarError(self._problem())
        self._tokens += tokens

    @staticmethod
    def advance_all(
        states: Sequence[GrammarState], tokens: Sequence[Sequence[int]], executor: LLExecutor
    ) -> dict[int, GrammarError]:
        """Take the next tokens of several answers, by several threads where each has one.

        Args:
            tokens: of each state.
            executor: the threads.

        Returns:
            By the place of a state that cannot take its tokens, the error.
        """
        if any(len(new) != 1 for new in tokens):
            taken = [
                state._matcher.consume_tokens(list(new)) for state, new in zip(states, tokens, strict=True)
            ]
        else:
            taken = executor.consume_token_par(
                [(state._matcher, new[0]) for state, new in zip(states, tokens, strict=True)]
            )
        failed = {}
        for index, (state, new, good) in enumerate(zip(states, tokens, taken, strict=True)):
            if good:
                state._tokens += new
            else:
                failed[index] = GrammarError(state._problem())
        return failed

    def follow(self, tokens: Sequence[int]) -> None:
        """Be where an answer of `tokens` stands, whatever was there before.

        Raises:
            GrammarError: as `advance`.
        """
        common = next(
            (i for i, (old, new) in enumerate(zip(self._tokens, tokens, strict=False)) if old != new),
            min(len(self._tokens), len(tokens)),
        )
        if common < len(self._tokens):
            self._matcher.rollback(len(self._tokens) - common)
            del self._tokens[common:]
        self.advance(tokens[common:])

    @property
    def may_end(self) -> bool:
        """Whether the answer has its form as it is."""
        return bool(self._matcher.is_accepting())

    def accepted(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may come next, the answer's end not among them."""
        ends = next((i for i, token in enumerate(tokens) if token in self._ends), len(tokens))
        return int(self._matcher.validate_tokens(list(tokens[:ends])))

    def fill(self, mask: np.ndarray) -> None:
        """Write which tokens may come next.

        Args:
            mask: int32 [words], contiguous; a bit for each token, the lowest first.

        Raises:
            GrammarError: the grammar has become too complex to follow.
        """
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._finish(mask)

    def _finish(self, mask: np.ndarray) -> None:
        """Let a mask of llguidance say what ends this answer, which may be other than the model has it."""
        matcher = self._matcher
        if matcher.is_error():
            raise GrammarError(self._problem())
        for word, bit in self._never_bits:
            mask[word] &= ~bit
        if self.may_end:
            for word, bit in self._end_bits:
                mask[word] |= bit

    def fill_ahead(self, tokens: Sequence[int], masks: np.ndarray) -> None:
        """Write what may come next, and what behind each of `tokens`, which may come.

        Args:
            masks: int32 [1 + tokens, words].
        """
        self.fill(masks[0])
        for token, mask in zip(tokens, masks[1:], strict=True):
            self._matcher.consume_token(token)
            self.fill(mask)
        self._matcher.rollback(len(tokens))

    @staticmethod
    def fill_all(
        states: Sequence[GrammarState], masks: np.ndarray, executor: LLExecutor
    ) -> dict[int, GrammarError]:
        """Write the masks of several answers, by several threads.

        Args:
            masks: int32 [states, words], contiguous.
            executor: the threads.

        Returns:
            By the place of a state whose grammar has become too complex to follow, the error.
        """
        matchers = [(state._matcher, index) for index, state in enumerate(states)]
        executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        failed = {}
        for index, state in enumerate(states):
            try:
                state._finish(masks[index])
            except GrammarError as error:
                failed[index] = error
        return failed

    def _problem(self) -> str:
        error = self._matcher.get_error()
        if "doesn't satisfy the grammar" in error:
            return "the tokens of the answer do not follow its grammar"
        return "the grammar has become too complex to follow"


def _word_and_bit(token: int) -> tuple[int, np.int32]:
    """Where a mask tells of `token`."""
    return token // WORD_BITS, np.uint32(1 << (token % WORD_BITS)).astype(np.int32)
