"""From logits to tokens, for every strategy in one batch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.beam import BeamSearch, Candidates, candidates_needed
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.logprobs import StepLogprobs
from server.continuous_batching.decoding.processors import (
    apply_filters,
    apply_processors,
    exclude_filtered,
)
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.decoding.sampler import FAILED, choose_tokens
from server.continuous_batching.decoding.verification import DraftLines
from server.continuous_batching.scheduler.request import Phase, Request, Sequence
from server.continuous_batching.transfer import to_host
from server.random import uniform


@dataclass(slots=True)
class StepLogits:
    """What a forward pass gives.

    Attributes:
        logits: [sampled, vocab], in the model's own type or float32.
        rows, positions: int32 [sampled] on the device: table row, and place of the token that each
            line follows; None where the device keeps no tokens.
    """

    logits: Tensor
    rows: Tensor | None = None
    positions: Tensor | None = None


@dataclass(slots=True)
class Decoded:
    """What a step chose.

    Attributes:
        tokens: per sampled sequence its next token, `FAILED` for none; without meaning for beams.
        candidates: per beam-search request its best continuations.
        logprobs: reports by index of the sampled sequence.
        accepted: per draft how many of its tokens are right; the tokens behind that have no meaning.
    """

    tokens: list[int]
    logprobs: StepLogprobs
    candidates: dict[str, Candidates] = field(default_factory=dict)
    accepted: list[int] = field(default_factory=list)

    def read(self) -> Decoded:
        """All of it is on the host already."""
        return self


class PendingTokens:
    """Tokens that were chosen on the device and are on their way to the host.

    Args:
        tokens: int32 [sampled] on the device.
        logprobs: to be reported with them; sent already.
    """

    def __init__(self, tokens: Tensor, logprobs: StepLogprobs) -> None:
        self._tokens = to_host(tokens)
        self._logprobs = logprobs
        self._copied: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def read(self) -> Decoded:
        """Wait for them."""
        if self._copied is not None:
            self._copied.synchronize()
        return Decoded(self._tokens.tolist(), self._logprobs)


class Decoder:
    """Chooses tokens for all rows of a step at once.

    Args:
        num_rows: most sequences that run at once.
        vocab_size: columns of the logits.
        device: where the logits are.
        device_rows: where tokens stay on the device from step to step, else None.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        device_rows: DeviceRows | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.table = RowTable(num_rows, vocab_size, device, device_rows)

    def join(self, request: Request) -> None:
        """Write the table rows of a request that entered the batch, or split into answers."""
        if request.phase is not Phase.RUNNING:
            return  # it was preempted in the step that admitted it
        if request.params.uses_beams and request.beams is None:
            request.beams = BeamSearch(request.params)
        for sequence in request.sequences:
            history = sequence.history
            cut = request.prompt_length
            prompt, generated = history.slice(0, cut), history.slice(cut, len(history))
            self.table.assign(sequence.row, request.params, sequence.index, prompt, generated)

    def choose(
        self, forward: StepLogits, sequences: Seq[Sequence], drafts: DraftLines | None = None
    ) -> Decoded | PendingTokens:
        """Choose the next token of every sequence; on the device, where it keeps tokens and none is a beam.

        Args:
            forward: logits of `sequences`, in their order; overwritten.
            sequences: the beams of a request stand together.
            drafts: guesses among them; none where the device keeps tokens.
        """
        device_rows = self.table.device_rows
        rows = np.fromiter((s.row for s in sequences), np.int64, len(sequences))
        if device_rows is None or self.table.beams[rows].any():
            return self.decode(forward.logits.float(), sequences, drafts)
        assert forward.rows is not None and forward.positions is not None
        logits, logprobs = forward.logits, StepLogprobs(forward.logits, self.table.logprobs[rows])
        plain = bool(self.table.plain[rows].all())
        if not plain:
            logits = logits.float()
            generated = np.fromiter((s.length - s.request.prompt_length for s in sequences), np.int64)
            apply_processors(logits, self.table, rows, generated)
            exclude_filtered(logits, self.table, rows)
        tokens = device_rows.sample(logits, forward.rows, forward.positions)
        if not plain or logprobs:
            chosen = tokens.long().clamp(min=0)
            self.table.note(rows, chosen)
            logprobs.send(chosen)
        return PendingTokens(tokens, logprobs)

    def decode(self, logits: Tensor, sequences: Seq[Sequence], drafts: DraftLines | None = None) -> Decoded:
        """Choose the next token of every sequence.

        Args:
            logits: float32 [len(sequences), vocab]; overwritten.
            sequences: whose rows those are; the beams of a request stand together.
            drafts: rows among them that follow a guess.
        """
        table = self.table
        rows = np.fromiter((s.row for s in sequences), np.int64, len(sequences))
        positions = np.fromiter((len(s.history) for s in sequences), np.int64, len(sequences))
        prompts = np.fromiter((s.request.prompt_length for s in sequences), np.int64, len(sequences))
        if drafts is not None:
            positions[drafts.lines] += drafts.depth
        logprobs = StepLogprobs(logits, table.logprobs[rows])
        beams = np.flatnonzero(table.beams[rows])
        if beams.size == len(sequences):
            logits = torch.log_softmax(logits, dim=-1)
        elif beams.size:
            logits[beams] = torch.log_softmax(logits[beams], dim=-1)
        apply_processors(logits, table, rows, positions - prompts, drafts)
        if beams.size == len(sequences):
            tokens = np.full(len(sequences), FAILED)
        else:
            tokens = choose_tokens(logits, table, rows, positions)
        decoded = Decoded(tokens.tolist(), logprobs)
        valid = tokens != FAILED
        valid[beams] = False  # theirs follow from the candidates
        if drafts is not None:
            decoded.accepted = drafts.accepted(tokens)
            valid[drafts.rejected(decoded.accepted)] = False
        table.record(rows[valid], tokens[valid])
        if beams.size:
            group = [sequences[i] for i in beams.tolist()]
            scores = logits if beams.size == len(sequences) else logits[beams]
            decoded.candidates = self._beam_candidates(scores, rows[beams], group)
        return decoded

    def _beam_candidates(
        self, scores: Tensor, rows: np.ndarray, sequences: Seq[Sequence]
    ) -> dict[str, Candidates]:
        """The best continuations of each request's beams (rows of a request stand together)."""
        requests = list({s.request.id: s.request for s in sequences}.values())
        running = np.concatenate([r.beams.scores for r in requests if r.beams is not None])
        sampled = [r.params.do_sample for r in requests]
        if any(sampled):
            lines = np.flatnonzero(np.repeat(sampled, [r.params.num_beams for r in requests]))
            scores[lines] = apply_filters(scores[lines], self.table, rows[lines])
        scores += self.table.on_device(running).unsqueeze(1)
        keys = scores
        if any(sampled):
            keys = scores.clone()
            keys[lines] += self._gumbel(rows[lines], [sequences[i] for i in lines.tolist()])
        count = min(max(candidates_needed(r.params) for r in requests), self.vocab_size)
        best = torch.topk(keys, count, dim=-1)
        values = scores.gather(1, best.indices).cpu().numpy()
        order, tokens = best.values.cpu().numpy(), best.indices.cpu().numpy()
        shapes = [(r.params.num_beams, candidates_needed(r.params)) for r in requests]
        starts = np.cumsum([0, *(beams for beams, _ in shapes)])[:-1]
        found: dict[str, Candidates] = {}
        for shape in set(shapes):  # requests of one shape are merged together
            members = [i for i, other in enumerate(shapes) if other == shape]
            lines = starts[members][:, None] + np.arange(shape[0])
            parts = _merge(order[lines], values[lines], tokens[lines], shape[1])
            stops = self.table.is_eos(rows[lines[:, 0]], parts[-1])
            merged = [Candidates(*part) for part in zip(*parts, stops, strict=True)]
            found.update(zip((requests[i].id for i in members), merged, strict=True))
        return found

    def _gumbel(self, rows: np.ndarray, sequences: Seq[Sequence]) -> Tensor:
        """Gumbel noise [rows, vocab]: the k largest of score + noise are k draws without
        replacement from softmax(scores) (Kool et al., 2019), as beam sampling wants them."""
        table = self.table
        beam = np.array([s.request.sequences.index(s) for s in sequences], np.int64)
        position = np.array([len(s.history) for s in sequences], np.int64)
        device = table.device
        numbers = uniform(
            table.column(table.integers["seed"], rows),
            torch.from_numpy(beam).to(device).unsqueeze(1),
            torch.from_numpy(position).to(device).unsqueeze(1),
            torch.arange(self.vocab_size, device=device).unsqueeze(0),
        )
        return -(-numbers.log()).log().float()


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
