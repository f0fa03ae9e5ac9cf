"""Takes the decoder's choice back into the requests: tokens appended, ends found, beams reordered."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from itertools import groupby

import numpy as np

from protocol.completion import FinishReason
from server.continuous_batching.decoding.beam import Candidates, Hypothesis
from server.continuous_batching.decoding.decoder import Decoded, Decoder
from server.continuous_batching.decoding.sampler import FAILED
from server.continuous_batching.engine.outputs import AnswerDelta, RequestFailure, StepOutput
from server.continuous_batching.scheduler.request import Request, Sequence
from server.continuous_batching.scheduler.scheduler import Scheduler
from server.text.detokenizer import StopMatcher
from server.text.logprob import TokenLogprob
from server.text.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class Collector:
    """Turns what was decoded into progress.

    Args:
        scheduler: is told which sequences end, split or die.
        decoder: is told which table rows are continued by which.
        vocabulary: bytes of each token, for stop strings.
    """

    def __init__(self, scheduler: Scheduler, decoder: Decoder, vocabulary: Vocabulary) -> None:
        self._scheduler = scheduler
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._matchers: dict[str, StopMatcher] = {}
        self.generated_tokens = 0

    def watch(self, request: Request) -> None:
        """Prepare for a new request; what another server generated already counts for its stops."""
        if request.params.stop:
            matcher = StopMatcher(self._vocabulary, request.params.stop)
            self._matchers[request.id] = matcher
            for sequence in request.sequences:
                for token in sequence.generated():
                    sequence.stop_tail, _ = matcher.step(sequence.stop_tail, token)
        for sequence in request.sequences:
            if request.params.logprobs is not None:
                sequence.logprobs = []

    def forget(self, request: Request) -> None:
        self._matchers.pop(request.id, None)

    def collect(self, sequences: Seq[Sequence], decoded: Decoded, output: StepOutput) -> None:
        """Take the next token of every sequence.

        Args:
            sequences: those that were sampled, beams of a request together; one with a draft again for
                each token of it.
            decoded: what was chosen for them, in the same order.
            output: progress is added here.
        """
        tokens = decoded.tokens
        for index, sequence in enumerate(sequences):
            request = sequence.request
            if request.params.uses_beams or not sequence.pending:
                # it ended, was cancelled or failed meanwhile, or this follows a wrong guess
                continue
            sequence.pending -= 1
            token = tokens[index]
            if token == FAILED:
                self.fail(request, "the model produced scores that are not finite", output)
                continue
            try:
                self._append(sequence, token, decoded, index, output)
            except Exception as error:
                self._give_up(request, error, output)
        if decoded.candidates:
            enumerated = [(i, s) for i, s in enumerate(sequences) if s.request.params.uses_beams]
            continued: list[Sequence] = []
            for _, group in groupby(enumerated, key=lambda pair: pair[1].request.id):
                members = list(group)
                try:
                    continued += self._advance_beams([s for _, s in members], members[0][0], decoded, output)
                except Exception as error:
                    self._give_up(members[0][1].request, error, output)
            rows = np.fromiter((beam.row for beam in continued), np.int64, len(continued))
            newest = np.fromiter((beam.history.last for beam in continued), np.int64, len(continued))
            self._decoder.table.record(rows, newest)

    def fail(self, request: Request, message: str, output: StepOutput, *, status: int = 500) -> None:
        """End a request with an error and free all it holds."""
        if request.sequences:
            self._scheduler.remove(request)
            self.forget(request)
            output.failures.append(RequestFailure(request.id, status, "generation_failed", message))

    def _give_up(self, request: Request, error: Exception, output: StepOutput) -> None:
        """The tokens of `request` could not be taken in; that is nothing to the others."""
        logger.error("request %s failed", request.id, exc_info=error)
        self.fail(request, f"this request failed: {error}", output)

    # -- one token ---------------------------------------------------------------------------

    def _append(
        self, sequence: Sequence, token: int, decoded: Decoded, index: int, output: StepOutput
    ) -> None:
        request = sequence.request
        sequence.history.append(token)
        self.generated_tokens += 1
        _report(sequence.logprobs, decoded, index, token)
        reason = self._end(sequence, token)
        if request.stream:
            logprobs = None if sequence.logprobs is None else sequence.logprobs[-1:]
            output.deltas.append(AnswerDelta(request.id, sequence.index, [token], reason, logprobs))
        elif reason is not None:
            delta = AnswerDelta(request.id, sequence.index, sequence.generated(), reason, sequence.logprobs)
            output.deltas.append(delta)
        if reason is not None:
            self._scheduler.finish(sequence)
            if not request.sequences:
                self._complete(request, output)

    def _end(self, sequence: Sequence, token: int) -> FinishReason | None:
        params = sequence.request.params
        if token in params.eos_token_ids:
            return "stop"
        if params.stop:
            matcher = self._matchers[sequence.request.id]
            sequence.stop_tail, hit = matcher.step(sequence.stop_tail, token)
            if hit:
                return "stop"
        return "length" if sequence.num_generated >= params.max_new_tokens else None

    def _complete(self, request: Request, output: StepOutput) -> None:
        output.done.append(request.id)
        self.forget(request)

    # -- beams -------------------------------------------------------------------------------

    def _advance_beams(
        self, sequences: list[Sequence], first: int, decoded: Decoded, output: StepOutput
    ) -> list[Sequence]:
        """One step of a request's beam search; row `first` is that of its first beam.

        Returns:
            The beams that go on, each with its new token.
        """
        request = sequences[0].request
        for sequence in sequences:
            sequence.pending = 0
        candidates = decoded.candidates[request.id]
        if request.beams is None or not np.isfinite(candidates.scores[0]):
            self.fail(request, "the model produced scores that are not finite", output)
            return []
        length = sequences[0].num_generated + 1
        stops = candidates.stops
        tails: list[bytes] = []
        if request.params.stop:
            stops, tails = self._match_stops(request, sequences, candidates)
        ends = np.ones_like(stops) if length >= request.params.max_new_tokens else stops

        def finish(candidate: int) -> Hypothesis:
            parent, token = int(candidates.parents[candidate]), int(candidates.tokens[candidate])
            history, logprobs = sequences[parent].history.fork(), sequences[parent].logprobs
            history.append(token)
            if logprobs is not None:
                logprobs = list(logprobs)
            _report(logprobs, decoded, first + parent, token)
            return Hypothesis(history, bool(stops[candidate]), logprobs)

        survivors = request.beams.advance(candidates, ends, length, finish)
        self.generated_tokens += len(survivors)
        if request.beams.done:
            self._deliver(request, output)
            return []
        parents = candidates.parents[survivors].tolist()
        tokens = candidates.tokens[survivors].tolist()
        beams = self._reorder(request, sequences, parents)
        for beam, parent, token in zip(beams, parents, tokens, strict=True):
            beam.history.append(token)
            _report(beam.logprobs, decoded, first + parent, token)
        if tails:
            for beam, candidate in zip(beams, survivors, strict=True):
                beam.stop_tail = tails[candidate]
        return beams

    def _match_stops(
        self, request: Request, sequences: list[Sequence], candidates: Candidates
    ) -> tuple[np.ndarray, list[bytes]]:
        """Per candidate: whether a token or a stop string ends it, and its new stop tail."""
        matcher = self._matchers[request.id]
        steps = [
            matcher.step(sequences[parent].stop_tail, int(token))
            for parent, token in zip(candidates.parents, candidates.tokens, strict=True)
        ]
        return candidates.stops | [hit for _, hit in steps], [tail for tail, _ in steps]

    def _reorder(self, request: Request, sequences: list[Sequence], parents: list[int]) -> list[Sequence]:
        """Let the beams continue their `parents`: the first child goes on as its parent, a further one
        takes the place of a beam without children."""
        childless = [sequence for index, sequence in enumerate(sequences) if index not in parents]
        beams: list[Sequence] = []
        used: set[int] = set()
        sources, targets = [], []
        for parent in parents:
            beam = sequences[parent]
            if parent in used:
                beam = childless.pop()
                self._scheduler.continue_with(beam, sequences[parent])
                sources.append(sequences[parent].row)
                targets.append(beam.row)
            used.add(parent)
            beams.append(beam)
        if targets:
            self._decoder.table.copy(sources, targets)
        request.sequences = beams
        return beams

    def _deliver(self, request: Request, output: StepOutput) -> None:
        assert request.beams is not None
        for index, answer in enumerate(request.beams.results()):
            tokens = answer.history.slice(request.prompt_length, len(answer.history))
            reason: FinishReason = "stop" if answer.stopped else "length"
            output.deltas.append(AnswerDelta(request.id, index, tokens, reason, answer.logprobs))
        self._scheduler.remove(request)
        self._complete(request, output)


def _report(logprobs: list[TokenLogprob] | None, decoded: Decoded, line: int, token: int) -> None:
    """Add what is to be told of `token`, chosen from line `line` of the scores, where there are reports."""
    if logprobs is not None:
        entry = decoded.logprobs.of(line, token)
        if entry is not None:
            logprobs.append(entry)
