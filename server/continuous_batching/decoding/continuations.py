"""The best continuations of all beams of a step, request by request."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.beam import Candidates, candidates_needed
from server.continuous_batching.decoding.processors import apply_filters
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.scheduler.request import Request, Sequence
from server.random import uniform

MOST_IN_TURN = 40
"""The kernel finds one continuation after the other; torch's top-k takes equally long for any number of them:
as long as some 40 in turn (256 beams, vocabularies of 32,000 and 128,256, H100)."""


class Continuations:
    """Finds them.

    Args:
        table: options by row.
        vocab_size: columns of the scores.
    """

    def __init__(self, table: RowTable, vocab_size: int) -> None:
        self._table = table
        self._vocab_size = vocab_size

    def of_logits(self, logits: Tensor, rows: np.ndarray, sequences: Seq[Sequence]) -> dict[str, Candidates]:
        """Those of beams whose scores no option changes, on a device with kernels of our own.

        Args:
            logits: [sequences, vocab], as the model gave them.
            rows: their table rows.
            sequences: beams; those of a request stand together.

        Returns:
            By the request's id.
        """
        from server.continuous_batching.kernels.triton_beams import best_continuations

        requests = _requests_of(sequences)
        running, count = self._table.on_device(_running_scores(requests)), self._count(requests)
        if count <= MOST_IN_TURN:
            best, tokens = best_continuations(logits, running, count)
        else:
            best, tokens = torch.topk(logits.float().log_softmax(dim=-1) + running.unsqueeze(1), count)
        scores = best.cpu().numpy()
        return self._by_request(requests, rows, scores, scores, tokens.cpu().numpy())

    def of_scores(self, scores: Tensor, rows: np.ndarray, sequences: Seq[Sequence]) -> dict[str, Candidates]:
        """The same from log probabilities float32 [sequences, vocab] that options were applied to
        already, all but sampling's; they are overwritten."""
        requests = _requests_of(sequences)
        sampled = np.repeat([r.params.do_sample for r in requests], [r.params.num_beams for r in requests])
        lines = np.flatnonzero(sampled)
        if lines.size:
            scores[lines] = apply_filters(scores[lines], self._table, rows[lines])
        scores += self._table.on_device(_running_scores(requests)).unsqueeze(1)
        keys = scores
        if lines.size:
            keys = scores.clone()
            keys[lines] += self._gumbel(rows[lines], [sequences[i] for i in lines.tolist()])
        best = torch.topk(keys, self._count(requests), dim=-1)
        values = scores.gather(1, best.indices).cpu().numpy()
        order, tokens = best.values.cpu().numpy(), best.indices.cpu().numpy()
        return self._by_request(requests, rows, order, values, tokens)

    def _count(self, requests: Seq[Request]) -> int:
        """Continuations to look at of each beam."""
        return min(max(candidates_needed(r.params) for r in requests), self._vocab_size)

    def _by_request(
        self,
        requests: Seq[Request],
        rows: np.ndarray,
        keys: np.ndarray,
        scores: np.ndarray,
        tokens: np.ndarray,
    ) -> dict[str, Candidates]:
        """Merge what was found [lines, k] for the beams of each request, by descending `keys`."""
        shapes = [(r.params.num_beams, candidates_needed(r.params)) for r in requests]
        starts = np.cumsum([0, *(beams for beams, _ in shapes)])[:-1]
        found: dict[str, Candidates] = {}
        for shape in set(shapes):  # requests of one shape are merged together
            members = [i for i, other in enumerate(shapes) if other == shape]
            lines = starts[members][:, None] + np.arange(shape[0])
            parts = _merge(keys[lines], scores[lines], tokens[lines], shape[1])
            stops = self._table.is_eos(rows[lines[:, 0]], parts[-1])
            merged = [Candidates(*part) for part in zip(*parts, stops, strict=True)]
            found.update(zip((requests[i].id for i in members), merged, strict=True))
        return found

    def _gumbel(self, rows: np.ndarray, sequences: Seq[Sequence]) -> Tensor:
        """Gumbel noise [rows, vocab]: the k largest of score + noise are k draws without
        replacement from softmax(scores) (Kool et al., 2019), as beam sampling wants them."""
        table = self._table
        beam = np.array([s.request.sequences.index(s) for s in sequences], np.int64)
        position = np.array([len(s.history) for s in sequences], np.int64)
        numbers = uniform(
            table.column(table.integers["seed"], rows),
            table.on_device(beam).unsqueeze(1),
            table.on_device(position).unsqueeze(1),
            torch.arange(self._vocab_size, device=table.device).unsqueeze(0),
        )
        return -(-numbers.log()).log().float()


def _requests_of(sequences: Seq[Sequence]) -> list[Request]:
    return list({s.request.id: s.request for s in sequences}.values())


def _running_scores(requests: Seq[Request]) -> np.ndarray:
    """float32 [beams]: accumulated log probabilities of all beams."""
    return np.concatenate([r.beams.scores for r in requests if r.beams is not None])


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
