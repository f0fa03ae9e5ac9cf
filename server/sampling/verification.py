"""How far drafted tokens are what the decoder chooses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from server.scheduling.step import StepInput


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

    @classmethod
    def of_step(cls, step: StepInput) -> DraftLines | None:
        """Those of a step, if it has any."""
        if not len(step.draft_lines):
            return None
        return cls(step.draft_lines, step.draft_lengths, step.draft_tokens, len(step.decode_slots))

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

    def chosen_lines(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [sequences, k] and [sequences]: the lines of each sequence's tokens, and how many of these
        count.

        Args:
            chosen: integers [lines], the token of every line.
        """
        owned = np.delete(np.arange(len(chosen)), self.lines)  # the first line of each sequence
        lines = np.repeat(owned[:, None], 1 + int(self.lengths.max()), axis=1)
        counts = np.ones(len(owned), np.int64)
        counts[self.owners] += self.accepted(chosen)
        for owner, start, length in zip(self.owners, self.starts, self.lengths, strict=True):
            lines[owner, 1 : 1 + length] = start + np.arange(length)
        return lines, counts

    def rejected(self, accepted: np.ndarray) -> np.ndarray:
        """int64: the lines that follow a wrong token, if `accepted` of each draft are right."""
        rejected: np.ndarray = self.lines[self.depth > np.repeat(accepted, self.lengths)]
        return rejected


@dataclass(slots=True)
class GpuDrafts:
    """The drafts among a step's lines, as a GPU knows them: int32 [lines] each, 0 in lines of padding.

    Attributes:
        depths: how many drafted tokens the line follows.
        firsts: of the line on which the first token of a draft is chosen, the line of that drafted token.
        lengths: of such a line, how many tokens are drafted; 0 for all others.
    """

    depths: Tensor
    firsts: Tensor
    lengths: Tensor


def describe_drafts(step: StepInput) -> np.ndarray:
    """int32 [3, lines of `StepInput.sampled`]: what `GpuDrafts` has."""
    owners, lengths = step.draft_lines, step.draft_lengths
    first = len(step.decode_slots)
    firsts = first + np.cumsum(lengths) - lengths
    described = np.zeros((3, first + lengths.sum() + step.chunk_samples.sum()), np.int32)
    for begin, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
        described[0, begin : begin + length] = np.arange(1, length + 1)
    described[1, owners], described[2, owners] = firsts, lengths
    return described
