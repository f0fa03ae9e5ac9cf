"""`no_repeat_ngram_size`: no n-gram of this length occurs twice in prompt and answer."""

from __future__ import annotations

import torch
from torch import Tensor

from server.device.triton_support import jit, tl
from server.sampling.lines import GpuLines, Lines
from server.sampling.stage import EXCLUDED, SlotSpace, Stage
from server.scheduling.params import SamplingParams
from server.scheduling.step import SlotStart

_TILE = 1024
_TILES = 8
"""Places and tiles of places that one program looks at."""


class NoRepeatNgram(Stage):
    """As transformers has it: a token is excluded if it would complete an n-gram that was there before.

    Nothing is kept but the size: the tokens are those of the token table.
    """

    options = ("no_repeat_ngram_size",)
    only_masks = True
    in_graph = True

    def __init__(self, space: SlotSpace) -> None:
        super().__init__(space)
        self._sizes = self.values(1, whole=True)

    def wants(self, params: SamplingParams) -> bool:
        return bool(params.options["no_repeat_ngram_size"])

    def assign(self, start: SlotStart) -> None:
        self._sizes.set(start.slot, start.params.options["no_repeat_ngram_size"])

    def apply(self, scores: Tensor, lines: Lines) -> None:
        longest = int(lines.positions.max()) + 1
        tokens = self.space.tokens.tokens[self.on_device(lines.slots), :longest]
        places = torch.arange(longest, device=tokens.device)
        lengths = self.on_device(lines.positions + 1).unsqueeze(1)
        sizes = self._sizes.column(0, lines.slots)
        repeats = (places < lengths) & (places >= sizes - 1)  # for each place: the n-gram that ends there
        for back in range(1, min(int(self._sizes.host[0, lines.slots].max()), longest)):
            newest = tokens.gather(1, (lengths - back).clamp(min=0))
            repeats[:, back:] &= (tokens[:, : longest - back] == newest) | (sizes <= back)
        which, ends = repeats.nonzero(as_tuple=True)
        scores[self.on_device(lines.at)[which], tokens[which, ends].long()] = EXCLUDED

    def launch(self, scores: Tensor, lines: GpuLines) -> Tensor:
        tokens = self.space.tokens.tokens
        programs = -(-tokens.shape[1] // (_TILE * _TILES))
        _exclude_repeats[(len(scores), programs)](
            scores, lines.slots, lines.positions, self._sizes.on_device, tokens,
            scores.stride(0), tokens.stride(0), TILE=_TILE, TILES=_TILES, num_warps=4,
        )  # fmt: skip
        return scores


@jit
def _exclude_repeats(
    scores, slots, positions, sizes, known, stride, most, TILE: tl.constexpr, TILES: tl.constexpr
):  # fmt: skip
    """Program (line, part of its tokens)."""
    line = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + line).to(tl.int64)
    size, length = tl.load(sizes + slot), tl.load(positions + line) + 1
    tokens = known + slot * most
    begin = tl.program_id(1) * TILE * TILES
    if size > 0:
        for first in range(begin, tl.minimum(begin + TILE * TILES, length), TILE):
            place = first + tl.arange(0, TILE)
            repeats = (place >= size - 1) & (place < length)
            for back in range(1, tl.minimum(size, length)):
                newest = tl.load(tokens + length - back)
                repeats &= tl.load(tokens + place - back, mask=repeats, other=-1) == newest
            token = tl.load(tokens + place, mask=repeats, other=0)
            tl.store(scores + line * stride + token, float("-inf"), mask=repeats)
