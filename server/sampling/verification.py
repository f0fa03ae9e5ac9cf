"""How far drafted tokens are what the decoder chooses."""

from __future__ import annotations

import numpy as np


class DraftLines:
    """The lines of a step's logits that belong to drafts.

    A draft of k tokens has k + 1 lines: that of its sequence, on which the first drafted token is
    chosen (or another), then one for each drafted token, which chooses what follows it.

    Args:
        owners: integers [drafts], the line on which the first token of each draft is chosen.
        lengths: integers [drafts], tokens of each.
        tokens: integers [drafted], those of all drafts.
        first: the first line of a drafted token; the others follow without gaps.

    Attributes:
        lines: int64 [drafted], those of the drafted tokens.
        depth: int64 [drafted], how many tokens of its draft each of them has behind it.
    """

    def __init__(self, owners: np.ndarray, lengths: np.ndarray, tokens: np.ndarray, first: int) -> None:
        self.owners = owners
        self.lengths = lengths
        self.starts = np.cumsum([first, *lengths])[:-1]
        self._tokens = np.split(tokens, np.cumsum(lengths)[:-1])
        self.lines = np.arange(first, first + len(tokens))
        self.depth = self.lines - np.repeat(self.starts, lengths) + 1

    def assumed(self) -> tuple[np.ndarray, np.ndarray]:
        """(lines, tokens): every drafted token that a line has behind it; int64."""
        lines = [
            start + i
            for start, tokens in zip(self.starts, self._tokens, strict=True)
            for i in range(len(tokens))
            for _ in range(i + 1)
        ]
        ahead = [tokens[: i + 1] for tokens in self._tokens for i in range(len(tokens))]
        return np.array(lines, np.int64), np.concatenate(ahead).astype(np.int64)

    def accepted(self, chosen: np.ndarray) -> np.ndarray:
        """int64 [drafts]: how many tokens of each are those chosen, [lines], up to the first that is not."""
        found = []
        for owner, start, tokens in zip(self.owners, self.starts, self._tokens, strict=True):
            before = np.concatenate((chosen[owner : owner + 1], chosen[start : start + len(tokens) - 1]))
            wrong = np.flatnonzero(before != tokens)
            found.append(wrong[0] if wrong.size else len(tokens))
        return np.array(found, np.int64)

    def rejected(self, accepted: np.ndarray) -> np.ndarray:
        """int64: the lines that follow a wrong token, if `accepted` of each draft are right."""
        rejected: np.ndarray = self.lines[self.depth > np.repeat(accepted, self.lengths)]
        return rejected
