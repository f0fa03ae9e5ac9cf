"""One token a line: the likeliest, or one drawn from softmax(scores / temperature).

Both are the greatest of score / temperature + noise (`random`), without noise in the first case. So nothing
is summed up, and what a filter excludes is -inf.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_device
from server.ops.cpu.build import NativeError
from server.ops.cpu.library import load
from server.sampling.lines import Lines
from server.sampling.masks import exclude_by_torch
from server.sampling.pipeline import filter_scores
from server.sampling.random import gumbel
from server.sampling.sampling_state import SamplingState
from server.scheduling.step import FAILED

_PART = 1 << 21
"""Scores that get their noise at once: what that takes beside them shall not grow with the batch."""


class Choose(Protocol):
    """Chooses tokens."""

    def __call__(
        self,
        scores: Tensor,
        temperatures: np.ndarray,
        seeds: np.ndarray,
        answers: np.ndarray,
        positions: np.ndarray,
        masks: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> Tensor:
        """The token of each line.

        Args:
            scores: float32 [lines, vocab], contiguous; those that a mask excludes may be overwritten.
            temperatures: float32 [lines], 0 for the likeliest token.
            seeds, answers: int64 [lines].
            positions: int64 [lines], places in their sequences of the tokens to be chosen.
            masks: int32 [any, words], a bit for each token that may be chosen, the lowest first.
            rows: int64 [lines], the mask of each line, -1 for none; where there are masks.

        Returns:
            int64 [lines], beside the scores: of equals the first; `FAILED` where the greatest is not finite,
            or anything is not a number. A token whose score is -inf is never chosen.
        """
        ...


def choose_by_torch(
    scores: Tensor,
    temperatures: np.ndarray,
    seeds: np.ndarray,
    answers: np.ndarray,
    positions: np.ndarray,
    masks: np.ndarray | None = None,
    rows: np.ndarray | None = None,
) -> Tensor:
    """`Choose` in torch's operators: on every device."""
    if masks is not None and rows is not None:
        at = np.flatnonzero(rows >= 0)
        exclude_by_torch(scores, at, masks, rows[at])
    lines, vocab = scores.shape
    tokens = torch.empty(lines, dtype=torch.int64, device=scores.device)
    at_once = max(1, _PART // vocab)
    for begin in range(0, lines, at_once):
        part = slice(begin, begin + at_once)
        perturbed, drawn = scores[part], np.flatnonzero(temperatures[part] > 0.0)
        if drawn.size:
            lines_of_part = (temperatures[part], seeds[part], answers[part], positions[part])
            index = to_device(drawn, scores.device)
            divisor, seed, answer, position = (to_device(v[drawn], scores.device) for v in lines_of_part)
            noise = gumbel(seed, answer, position, vocab)
            perturbed = perturbed.clone()
            perturbed[index] = perturbed[index] / divisor.unsqueeze(1) + noise
        best, chosen = perturbed.max(dim=-1)
        tokens[part] = torch.where(torch.isfinite(best), chosen, FAILED)
    return tokens


def choose_function(device: torch.device) -> tuple[Choose, dict[str, str]]:
    """What chooses tokens from scores on `device`; its name, and why it is that, for the operator."""
    if device.type != "cpu":
        return choose_by_torch, {"name": "torch", "reason": "torch operations run on every device"}
    try:
        library = load()
    except NativeError as error:
        return choose_by_torch, {"name": "torch", "reason": f"no own C++ kernels: {error}"}
    return library.choose, {"name": "native", "reason": "own C++ kernels: one look at the scores"}


def choose_tokens(scores: Tensor, state: SamplingState, lines: Lines, choose: Choose) -> np.ndarray:
    """The next token of each line; what it says of beams has no meaning.

    Args:
        scores: float32 [lines, vocab], as `change_scores` leaves them; overwritten.
        state: the slots' options.
        lines: all of the scores.

    Returns:
        int64 [lines]; `FAILED` where nothing can be chosen.
    """
    temperatures = state.draws.host[0, lines.slots].astype(np.float32)
    filters = state.filtered[lines.slots]
    if filters.any():
        wanting = np.flatnonzero(filters & (temperatures > 0.0))  # the others are beams
        filtered = lines.take(wanting)
        scores[state.on_device(filtered.at)] = filter_scores(scores, state, filtered)
        temperatures[wanting] = 1.0
    seeds, answers = state.numbers.host[:, lines.slots]
    positions, masks = lines.positions + 1, state.masks(lines)
    return choose(scores, temperatures, seeds, answers, positions, *masks).cpu().numpy()
