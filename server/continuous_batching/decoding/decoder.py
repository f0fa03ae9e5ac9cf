"""From logits to tokens, for every strategy in one batch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.beam import BeamSearch, Candidates
from server.continuous_batching.decoding.continuations import Continuations
from server.continuous_batching.decoding.device_choice import DeviceChoice
from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.logprobs import StepLogprobs
from server.continuous_batching.decoding.processors import apply_processors
from server.continuous_batching.decoding.rows import RowTable
from server.continuous_batching.decoding.sampler import FAILED, choose_tokens
from server.continuous_batching.decoding.step_logits import StepLogits
from server.continuous_batching.decoding.verification import DraftLines
from server.continuous_batching.scheduler.request import Phase, Request, Sequence
from server.continuous_batching.transfer import to_host


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
        self._continuations = Continuations(self.table, vocab_size)
        self._choice = None if device_rows is None else DeviceChoice(self.table, device_rows)

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
        """Choose the next token of every sequence: on the device where it keeps tokens, but for beams.

        Args:
            forward: logits of `sequences`, in their order; overwritten.
            sequences: the beams of a request stand together.
            drafts: guesses among them; none where the device keeps tokens.
        """
        if self._choice is None:
            return self.decode(forward.sampled.float(), sequences, drafts)
        table, logits = self.table, forward.sampled
        rows = np.fromiter((s.row for s in sequences), np.int64, len(sequences))
        logprobs = StepLogprobs(logits, table.logprobs[rows])
        beams = np.flatnonzero(table.beams[rows])
        candidates = self._continue_beams(logits, rows, beams, sequences) if beams.size else {}
        if beams.size == len(sequences):
            return Decoded([FAILED] * len(sequences), logprobs, candidates)
        tokens = self._choice.choose(forward, rows, sequences)[: len(sequences)]
        if candidates:
            return Decoded(tokens.tolist(), logprobs, candidates)
        if logprobs:
            logprobs.send(tokens.long().clamp(min=0))
        return PendingTokens(tokens, logprobs)

    def _continue_beams(
        self, logits: Tensor, rows: np.ndarray, lines: np.ndarray, sequences: Seq[Sequence]
    ) -> dict[str, Candidates]:
        """The best continuations of the beams, which stand at `lines`; `logits` stay as they are."""
        beams = [sequences[line] for line in lines.tolist()]
        rows = rows[lines]
        if len(beams) < len(sequences):
            logits = logits[self.table.on_device(lines)]
        if self.table.plain[rows].all():
            return self._continuations.of_logits(logits, rows, beams)
        scores = torch.log_softmax(logits.float(), dim=-1)
        apply_processors(scores, self.table, rows, np.array([beam.num_generated for beam in beams]))
        return self._continuations.of_scores(scores, rows, beams)

    def warm_up(self, forward: StepLogits) -> None:
        """Choose from these logits in all ways, so that every kernel is compiled."""
        if self._choice is not None:
            from server.continuous_batching.kernels.triton_beams import best_continuations

            best_continuations(forward.logits, torch.zeros(len(forward.logits), device=self.table.device), 2)
            self._choice.warm_up(forward)

    def decode(self, logits: Tensor, sequences: Seq[Sequence], drafts: DraftLines | None = None) -> Decoded:
        """Choose the next token of every sequence where the device keeps none.

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
            decoded.candidates = self._continuations.of_scores(scores, rows[beams], group)
        return decoded
