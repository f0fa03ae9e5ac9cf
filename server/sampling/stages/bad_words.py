"""`bad_words_ids`: sequences of tokens that the answer does not complete."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from protocol.generation import MAX_BAD_SEQUENCES, MAX_BAD_TOKENS
from server.device.triton_support import jit, tl
from server.sampling.lines import GpuLines, Lines
from server.sampling.stage import EXCLUDED, SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart

_NONE = -1
"""Stands where a sequence has no token more."""


class BadWords(Stage):
    """As transformers has it: the last token of a sequence is excluded where those before it have just come,
    in the prompt or in the answer. A token that ends the answer is not excluded by itself."""

    options = ("bad_words_ids",)
    only_masks = True
    in_graph = True

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._counts = self.values(1, whole=True)
        self.words = self.table(torch.int32, MAX_BAD_SEQUENCES * MAX_BAD_TOKENS)
        """Each sequence backwards: what it excludes, then the token before that, and so on."""

    @classmethod
    def bytes_per_slot(cls, vocab_size: int) -> int:
        return MAX_BAD_SEQUENCES * MAX_BAD_TOKENS * torch.int32.itemsize

    def wants(self, params: SamplingParams) -> bool:
        return bool(_sequences(params))

    def assign(self, start: SlotStart) -> None:
        sequences = _sequences(start.params)
        words = np.full((len(sequences), MAX_BAD_TOKENS), _NONE, np.int32)
        for line, tokens in zip(words, sequences, strict=True):
            line[: len(tokens)] = tokens[::-1]
        self._counts.set(start.slot, len(sequences))
        self.words.tensor[start.slot, : words.size] = self.on_device(words.reshape(-1))

    def apply(self, scores: Tensor, lines: Lines) -> None:
        slots = self.on_device(lines.slots)
        most = int(self._counts.host[0, lines.slots].max())
        words = self.words.tensor[slots, : most * MAX_BAD_TOKENS].view(len(lines), most, MAX_BAD_TOKENS)
        there = torch.arange(most, device=words.device) < self._counts.column(0, lines.slots)
        back = torch.arange(MAX_BAD_TOKENS - 1, device=words.device)
        places = self.on_device(lines.positions).unsqueeze(1) - back
        newest = self.space.tokens.tokens[slots.unsqueeze(1), places.clamp(min=0)]
        newest = newest.masked_fill(places < 0, _NONE - 1).unsqueeze(1)
        wanted = words[:, :, 1:]
        there &= ((wanted == newest) | (wanted == _NONE)).all(dim=2)
        which, word = there.nonzero(as_tuple=True)
        scores[self.on_device(lines.at)[which], words[which, word, 0].long()] = EXCLUDED

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        tokens = self.space.tokens.tokens
        _exclude_words[(len(scores),)](
            scores, lines.slots, lines.positions, self._counts.on_device, self.words.tensor, tokens,
            scores.stride(0), tokens.stride(0), MOST=MAX_BAD_SEQUENCES, SIZE=MAX_BAD_TOKENS, num_warps=4,
        )  # fmt: skip
        return scores


def _sequences(params: SamplingParams) -> list[list[int]]:
    """Those that count: an end alone does not, as in transformers, for `ignore_eos` is there for that."""
    ends = params.eos_token_ids
    return [tokens for tokens in params.options["bad_words_ids"] if len(tokens) > 1 or tokens[0] not in ends]


@jit
def _exclude_words(
    scores, slots, positions, counts, words, known, stride, longest, MOST: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Program (line)."""
    line = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + line).to(tl.int64)
    count, length = tl.load(counts + slot), tl.load(positions + line) + 1
    if count > 0:
        tokens = known + slot * longest
        sequence = tl.arange(0, MOST)
        there = sequence < count
        word = words + slot * (MOST * SIZE) + sequence * SIZE
        for back in range(1, SIZE):
            wanted = tl.load(word + back, mask=there, other=-1)
            newest = tl.load(tokens + tl.maximum(length - back, 0))
            there &= (wanted < 0) | ((wanted == newest) & (back <= length))
        token = tl.load(word, mask=there, other=0)
        tl.store(scores + line * stride + token, float("-inf"), mask=there)
