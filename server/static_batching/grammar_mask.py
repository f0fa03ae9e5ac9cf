"""`structured_outputs` of the rows of a package, which share one grammar."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.static_batching.prompts import PaddedPrompts
from server.text.grammars.compiler import Grammar
from server.text.grammars.state import GrammarState, excluded_tokens


class GrammarMask:
    """Excludes the tokens that the grammar does not allow next.

    Args:
        grammar: of all rows.
        prompts: of the rows.
        eos_token_ids: tokens that end an answer.

    Raises (when called):
        GrammarError: the grammar has become too complex to follow.
    """

    def __init__(self, grammar: Grammar, prompts: PaddedPrompts, eos_token_ids: list[int]) -> None:
        self._grammar = grammar
        self._width = prompts.width
        self._ends = set(eos_token_ids)
        self._states: list[GrammarState] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        while len(self._states) < len(input_ids):
            self._states.append(self._grammar.begin())
        mask = np.empty(self._grammar.mask_words, np.int32)
        excluded = np.zeros(scores.shape, bool)
        for row, generated in enumerate(input_ids[:, self._width :].tolist()):
            if self._ends.isdisjoint(generated):  # else it has ended: what follows is padding
                state = self._states[row]
                state.follow(generated)
                state.fill(mask)
                excluded[row] = excluded_tokens(mask, scores.shape[1])
        return scores.masked_fill(torch.from_numpy(excluded).to(scores.device), float("-inf"))
