"""When a row of a package is done, and where its answer ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocol.completion import FinishReason
from server.static_batching.prompts import PaddedPrompts, Prompt
from server.text.detokenizer import StopMatcher
from server.text.vocabulary import Vocabulary


class RowStopping:
    """Each row stops at its own length, stop strings and cancellation.

    End-of-sequence tokens are alike for all rows of a package and left to transformers.
    """

    def __init__(self, prompts: PaddedPrompts, vocabulary: Vocabulary) -> None:
        self._prompts = prompts
        lengths = [row.config.max_new_tokens for row in prompts.rows]
        self._lengths = torch.tensor(lengths, device=prompts.input_ids.device)
        self._vocabulary = vocabulary
        self._generated = 0
        self._matchers = {
            i: StopMatcher(vocabulary, row.config.stop)
            for i, row in enumerate(prompts.rows)
            if row.config.stop
        }

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Which rows are done, bool [rows]; `input_ids` is [rows, prompt + new]."""
        generated = input_ids.shape[1] - self._prompts.width
        added, self._generated = generated - self._generated, generated
        done = self._prompts.of_rows(self._lengths <= generated, input_ids)
        per_prompt = input_ids.shape[0] // len(self._prompts.rows)
        for i, prompt in enumerate(self._prompts.rows):
            rows = range(i * per_prompt, (i + 1) * per_prompt)
            if prompt.cancelled():
                done[rows.start : rows.stop] = True
            elif i in self._matchers:
                for row in rows:
                    new = input_ids[row, self._prompts.width :].tolist()
                    ends = range(generated - added + 1, generated + 1)
                    done[row] |= any(self._completes_stop(self._matchers[i], new[:end]) for end in ends)
        return done

    def _completes_stop(self, matcher: StopMatcher, token_ids: list[int]) -> bool:
        """Whether the last token completes a stop string.

        What came before is read again each time: beams change rows, so no state could stay with one.
        """
        *before, last = token_ids
        tail = b""
        while before and len(tail) < matcher.keep:
            tail = self._vocabulary.spelled(before.pop()) + tail
        return matcher.step(tail[-matcher.keep :] if matcher.keep else b"", last)[1]


def cut(
    token_ids: list[int], prompt: Prompt, eos_token_ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[list[int], FinishReason]:
    """The answer in the new tokens of a row, without what `generate` put behind it, and how it
    ended. The token that ended it is part of it."""
    matcher = StopMatcher(vocabulary, prompt.config.stop) if prompt.config.stop else None
    tail = b""
    answer = token_ids[: prompt.config.max_new_tokens]
    for end, token_id in enumerate(answer, start=1):
        hit = token_id in eos_token_ids
        if matcher is not None and not hit:
            tail, hit = matcher.step(tail, token_id)
        if hit:
            return answer[:end], "stop"
    return answer, "length"
