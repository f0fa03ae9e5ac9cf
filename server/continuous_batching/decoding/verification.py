"""How far drafted tokens are what the decoder chooses."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np

from server.continuous_batching.scheduler.plan import Draft


class DraftLines:
    """The lines of a step's logits that belong to drafts.

    A draft of k tokens has k + 1 lines: that of its sequence, on which the first drafted token is
    chosen (or another), then one for each drafted token, which chooses what follows it.

    Args:
        drafts: guesses, in the order of their lines.
        first: the first line of a drafted token; the others follow without gaps.

    Attributes:
        lines: int64 [drafted], those of the drafted tokens.
        depth: int64 [drafted], how many tokens of its draft each of them has behind it.
    """

    def __init__(self, drafts: Seq[Draft], first: int) -> None:
        lengths = [len(draft.tokens) for draft in drafts]
        self._drafts = drafts
        self._starts = np.cumsum([first, *lengths])[:-1]
        self.lines = np.arange(first, first + sum(lengths))
        self.depth = self.lines - np.repeat(self._starts, lengths) + 1

    def assumed(self) -> tuple[np.ndarray, np.ndarray]:
        """(lines, tokens): every drafted token that a line has behind it; int64."""
        lines = [
            start + i
            for start, draft in zip(self._starts, self._drafts, strict=True)
            for i in range(len(draft.tokens))
            for _ in range(i + 1)
        ]
        tokens = [
            t for draft in self._drafts for i in range(len(draft.tokens)) for t in draft.tokens[: i + 1]
        ]
        return np.array(lines, np.int64), np.array(tokens, np.int64)

    def accepted(self, chosen: np.ndarray) -> list[int]:
        """How many tokens of each draft are those chosen, int64 [lines], up to the first that is not."""
        found = []
        for draft, start in zip(self._drafts, self._starts, strict=True):
            before = np.concatenate(
                (chosen[draft.line : draft.line + 1], chosen[start : start + len(draft.tokens) - 1])
            )
            wrong = np.flatnonzero(before != draft.tokens)
            found.append(int(wrong[0]) if wrong.size else len(draft.tokens))
        return found

    def rejected(self, accepted: Seq[int]) -> np.ndarray:
        """int64: the lines that follow a wrong token, if `accepted` of each draft are right."""
        limits = np.repeat(np.array(accepted), [len(draft.tokens) for draft in self._drafts])
        rejected: np.ndarray = self.lines[self.depth > limits]
        return rejected
