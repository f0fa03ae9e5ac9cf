"""The best continuations of all beams of a step, request by request."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.sampling.lines import Lines
from server.sampling.pipeline import filter_scores
from server.sampling.random import gumbel
from server.sampling.sampling_state import SamplingState
from server.scheduling.beam_search import Candidates

MOST_IN_TURN = 40
"""The kernel finds one continuation after the other; torch's top-k takes equally long for any number of them:
as long as some 40 in turn (256 beams, vocabularies of 32,000 and 128,256, H100)."""


class Continuations:
    """Finds them.

    Args:
        state: what each slot's request asks for.
    """

    def __init__(self, state: SamplingState) -> None:
        self._state = state

    def of_logits(self, logits: Tensor, slots: np.ndarray, running: np.ndarray) -> list[Candidates]:
        """Those of beams whose scores no option changes, on a device with kernels of our own.

        Args:
            logits: [beams, vocab], as the model gave them.
            slots: of the beams; those of a request stand together.
            running: float32 [beams], accumulated log probabilities.

        Returns:
            One for each request, in order.
        """
        from server.sampling.triton.beams import best_continuations

        scores, count = self._state.on_device(running), self._count(slots)
        if count <= MOST_IN_TURN:
            best, tokens = best_continuations(logits, scores, count)
        else:
            best, tokens = torch.topk(logits.float().log_softmax(dim=-1) + scores.unsqueeze(1), count)
        values = best.cpu().numpy()
        return self._by_request(slots, values, values, tokens.cpu().numpy())

    def of_scores(
        self, scores: Tensor, slots: np.ndarray, positions: np.ndarray, running: np.ndarray
    ) -> list[Candidates]:
        """The same from log probabilities float32 [beams, vocab] that options were applied to already, all
        but sampling's; they are overwritten.

        Args:
            positions: of the beams' newest tokens.
        """
        lines = np.flatnonzero(self._state.sampled_beams[slots])
        if lines.size:
            drawn = Lines.of_step(slots, positions).take(lines)
            scores[lines] = filter_scores(scores, self._state, drawn)
        scores += self._state.on_device(running).unsqueeze(1)
        keys = scores
        if lines.size:
            keys = scores.clone()
            keys[lines] += self._gumbel(slots, positions, lines)
        best = torch.topk(keys, self._count(slots), dim=-1)
        values = scores.gather(1, best.indices).cpu().numpy()
        order, tokens = best.values.cpu().numpy(), best.indices.cpu().numpy()
        return self._by_request(slots, order, values, tokens)

    def _count(self, slots: np.ndarray) -> int:
        """Continuations to look at of each beam."""
        return min(int(self._state.candidates[slots].max()), self._state.vocab_size)

    def _by_request(
        self, slots: np.ndarray, keys: np.ndarray, scores: np.ndarray, tokens: np.ndarray
    ) -> list[Candidates]:
        """Merge what was found [lines, k] for the beams of each request, by descending `keys`."""
        starts = self._starts(slots)
        owners = slots[starts]
        ranked = (~self._state.sampled_beams[owners]).tolist()
        shapes = np.stack((self._state.num_beams[owners], self._state.candidates[owners]), axis=1)
        found: list[Candidates | None] = [None] * len(starts)
        for shape in np.unique(shapes, axis=0):  # requests of one shape are merged together
            members = np.flatnonzero((shapes == shape).all(axis=1))
            lines = starts[members][:, None] + np.arange(shape[0])
            best, parents, chosen = _merge(keys[lines], scores[lines], tokens[lines], shape[1])
            stops = self._state.is_end(owners[members], chosen)
            columns = (members.tolist(), best, parents.tolist(), chosen.tolist(), stops)
            for member, value, parent, token, stop in zip(*columns, strict=True):
                found[member] = Candidates(value, parent, token, stop, ranked[member])
        return [candidates for candidates in found if candidates is not None]

    def _starts(self, slots: np.ndarray) -> np.ndarray:
        """int64 [requests]: the line of each one's first beam."""
        sizes, starts = self._state.num_beams[slots].tolist(), [0]
        while starts[-1] + sizes[starts[-1]] < len(slots):
            starts.append(starts[-1] + sizes[starts[-1]])
        return np.array(starts)

    def _gumbel(self, slots: np.ndarray, positions: np.ndarray, lines: np.ndarray) -> Tensor:
        """Gumbel noise [lines, vocab]: the k largest of score + noise are k draws without
        replacement from softmax(scores) (Kool et al., 2019), as beam sampling wants them."""
        state, starts = self._state, self._starts(slots)
        beam = np.arange(len(slots)) - starts[np.searchsorted(starts, np.arange(len(slots)), "right") - 1]
        seeds = state.on_device(state.numbers.host[0, slots[lines]])
        beams, places = state.on_device(beam[lines]), state.on_device(positions[lines] + 1)
        return gumbel(seeds, beams, places, state.vocab_size)


def _merge(
    keys: np.ndarray, values: np.ndarray, tokens: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` best of all beams' candidates of each request, [requests, beams, k] each.

    Returns:
        (scores, parents, tokens), [requests, count] each.
    """
    requests, _, per_beam = keys.shape
    best = np.argsort(-keys.reshape(requests, -1), axis=1, kind="stable")[:, :count]
    scores = np.take_along_axis(values.reshape(requests, -1), best, 1).astype(np.float32)
    chosen = np.take_along_axis(tokens.reshape(requests, -1), best, 1)
    return scores, best // per_beam, chosen
