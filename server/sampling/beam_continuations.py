"""The best continuations of all beams of a step, request by request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_host
from server.sampling.lines import Lines
from server.sampling.pipeline import filter_scores
from server.sampling.random import gumbel
from server.sampling.sampling_state import SamplingState
from server.scheduling.beam_search import Candidates

MOST_IN_TURN = 40
"""The kernel finds one continuation after the other; torch's top-k takes equally long for any number of them:
as long as some 40 in turn (256 beams, vocabularies of 32,000 and 128,256, H100)."""


@dataclass(slots=True)
class Searches:
    """The requests that the beams of a step are of, in the order of the step.

    Attributes:
        starts: int64 [requests], the line of each one's first beam.
        shapes: int64 [requests, 2], how many beams each has, and how many continuations it looks at.
        ranked: whether each looks at the best ones, rather than at some that are drawn.
        ends: int64 [requests, most], the tokens that end its answers.
    """

    starts: np.ndarray
    shapes: np.ndarray
    ranked: list[bool]
    ends: np.ndarray

    @classmethod
    def of_slots(cls, state: SamplingState, slots: np.ndarray) -> Searches:
        """Those whose beams are in `slots`, as they are now: a slot may be another request's later."""
        sizes, starts = state.num_beams[slots].tolist(), [0]
        while starts[-1] + sizes[starts[-1]] < len(slots):
            starts.append(starts[-1] + sizes[starts[-1]])
        owners = slots[starts]
        shapes = np.stack((state.num_beams[owners], state.candidates[owners]), axis=1)
        return cls(np.array(starts), shapes, (~state.sampled_beams[owners]).tolist(), state.ends[owners])


class PendingCandidates:
    """Continuations that were found on the device and are on their way to the host.

    Args:
        searches: whose they are.
        keys: [lines, k], what they are ordered by.
        scores: [lines, k], accumulated log probabilities.
        tokens: [lines, k].
    """

    def __init__(self, searches: Searches, keys: Tensor, scores: Tensor, tokens: Tensor) -> None:
        self._searches = searches
        self._scores, self._tokens = to_host(scores), to_host(tokens)
        self._keys = self._scores if keys is scores else to_host(keys)

    def read(self) -> list[Candidates]:
        """One for each request, in order; the device must have come so far."""
        searches = self._searches
        keys, scores, tokens = (found.numpy() for found in (self._keys, self._scores, self._tokens))
        merged: list[Candidates | None] = [None] * len(searches.starts)
        for shape in np.unique(searches.shapes, axis=0):  # requests of one shape are merged together
            members = np.flatnonzero((searches.shapes == shape).all(axis=1))
            lines = searches.starts[members][:, None] + np.arange(shape[0])
            best, parents, chosen = _merge(keys[lines], scores[lines], tokens[lines], shape[1])
            stops = (chosen[:, :, None] == searches.ends[members][:, None, :]).any(axis=2)
            columns = (members.tolist(), best, parents.tolist(), chosen.tolist(), stops)
            for member, value, parent, token, stop in zip(*columns, strict=True):
                merged[member] = Candidates(value, parent, token, stop, searches.ranked[member])
        return [candidates for candidates in merged if candidates is not None]


class Continuations:
    """Finds them.

    Args:
        state: what each slot's request asks for.
    """

    def __init__(self, state: SamplingState) -> None:
        self._state = state

    def of_logits(self, logits: Tensor, slots: np.ndarray, running: np.ndarray) -> PendingCandidates:
        """Those of beams whose scores no option changes, on a device with kernels of our own.

        Args:
            logits: [beams, vocab], as the model gave them.
            slots: of the beams; those of a request stand together.
            running: float32 [beams], accumulated log probabilities.
        """
        from server.sampling.triton.beams import best_continuations

        scores, count = self._state.on_device(running), self._count(slots)
        if count <= MOST_IN_TURN:
            best, tokens = best_continuations(logits, scores, count)
        else:
            best, tokens = torch.topk(logits.float().log_softmax(dim=-1) + scores.unsqueeze(1), count)
        return PendingCandidates(Searches.of_slots(self._state, slots), best, best, tokens)

    def of_scores(
        self, scores: Tensor, slots: np.ndarray, positions: np.ndarray, running: np.ndarray
    ) -> PendingCandidates:
        """The same from log probabilities float32 [beams, vocab] that options were applied to already, all
        but sampling's; they are overwritten.

        Args:
            positions: of the beams' newest tokens.
        """
        searches = Searches.of_slots(self._state, slots)
        lines = np.flatnonzero(self._state.sampled_beams[slots])
        if lines.size:
            drawn = Lines.of_step(slots, positions).take(lines)
            scores[lines] = filter_scores(scores, self._state, drawn)
        scores += self._state.on_device(running).unsqueeze(1)
        keys = scores
        if lines.size:
            keys = scores.clone()
            keys[lines] += self._gumbel(searches.starts, slots, positions, lines)
        best = torch.topk(keys, self._count(slots), dim=-1)
        return PendingCandidates(searches, best.values, scores.gather(1, best.indices), best.indices)

    def _count(self, slots: np.ndarray) -> int:
        """Continuations to look at of each beam."""
        return min(int(self._state.candidates[slots].max()), self._state.vocab_size)

    def _gumbel(
        self, starts: np.ndarray, slots: np.ndarray, positions: np.ndarray, lines: np.ndarray
    ) -> Tensor:
        """Gumbel noise [lines, vocab]: the k largest of score + noise are k draws without
        replacement from softmax(scores) (Kool et al., 2019), as beam sampling wants them."""
        state = self._state
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
