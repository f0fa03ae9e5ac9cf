"""Takes the decoder's choice back into the requests: tokens appended, ends found, beams reordered."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence as Seq
from itertools import groupby

import numpy as np

from protocol.completion import FinishReason
from server.continuous_batching.outputs import AnswerDelta, PromptReport, RequestFailure, StepOutput
from server.device.faults import is_of_the_machine
from server.scheduling.beam_search import Candidates, Hypothesis, has_chance
from server.scheduling.plan import Chunk
from server.scheduling.queues import Queues
from server.scheduling.request import Request, Sequence
from server.scheduling.step import FAILED, PromptReports, Reports, StepResult
from server.scheduling.step_builder import BeamMoves
from server.text.detokenizer import StopMatcher
from server.text.logprob import TokenLogprob
from server.text.vocabulary import Vocabulary

NOT_FINITE = (
    "no token can be chosen: the model's scores for this request are not finite, "
    "or its options exclude every token"
)

logger = logging.getLogger(__name__)


class Collector:
    """Turns what was decoded into progress.

    Args:
        queues: where sequences end, split or are given up.
        moves: takes down what becomes of beams, for the worker.
        vocabulary: bytes of each token, for stop strings.
    """

    def __init__(self, queues: Queues, moves: BeamMoves, vocabulary: Vocabulary) -> None:
        self._queues = queues
        self._moves = moves
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

    def forget(self, request_id: str) -> None:
        """A request is gone."""
        self._matchers.pop(request_id, None)

    def collect_prompts(self, chunks: Seq[Chunk], reports: PromptReports, output: StepOutput) -> None:
        """Report the log probabilities of prompts.

        Args:
            chunks: those of the step, in its order.
            reports: on the tokens of theirs that are scored.
            output: gets the reports.
        """
        line = 0
        for chunk in chunks:
            (first, end), request = chunk.scored, chunk.sequence.request
            begin, line = line, line + chunk.num_scored
            start = max(first, request.prompt_reported)  # it may be computed again before it was read
            if start >= end or not request.sequences:
                continue
            tokens = chunk.sequence.history.slice(start + 1, end + 1)
            found = reports.of(begin + start - first, tokens, request.params.prompt_logprobs or 0)
            request.prompt_reported = end
            if any(math.isnan(entry.logprob) for entry in found):
                self.fail(request, NOT_FINITE, output)
            else:
                output.prompts.append(PromptReport(request.id, found))

    def collect(self, sequences: Seq[Sequence], result: StepResult, output: StepOutput) -> None:
        """Take the next tokens of every sequence.

        Args:
            sequences: those that were sampled, beams of a request together.
            result: what was chosen for them, in the same order.
            output: progress is added here.
        """
        chosen, reports = result.tokens.tolist(), result.reports
        if result.tokens.shape[1] > 1:  # else each has one, and the rows are as they should be
            chosen = [row[:count] for row, count in zip(chosen, result.counts.tolist(), strict=True)]
        for index, (sequence, tokens) in enumerate(zip(sequences, chosen, strict=True)):
            request = sequence.request
            if request.beams is not None or not sequence.pending:
                continue  # it ended, was cancelled or failed meanwhile
            sequence.pending -= 1
            try:
                for place, token in enumerate(tokens):
                    report = None
                    if place and sequence not in request.sequences:
                        break  # the token before was its last
                    if token == FAILED:
                        self.fail(request, NOT_FINITE, output)
                        break
                    if sequence.logprobs is not None and reports is not None:
                        report = reports.of(index, token, place=place)
                    self._append(sequence, token, report, output)
            except Exception as error:
                self.give_up(request, error, output)
        if result.candidates:
            self._collect_beams(sequences, result, output)

    def _collect_beams(self, sequences: Seq[Sequence], result: StepResult, output: StepOutput) -> None:
        enumerated = [(i, s) for i, s in enumerate(sequences) if s.request.params.uses_beams]
        groups = groupby(enumerated, key=lambda pair: pair[1].request.id)
        for (_, group), candidates in zip(groups, result.candidates, strict=True):
            members = list(group)
            beams = [sequence for _, sequence in members]
            if not beams[0].pending:
                continue  # it was cancelled or failed meanwhile
            try:
                self._advance_beams(beams, members[0][0], candidates, result.reports, output)
            except Exception as error:
                self.give_up(beams[0].request, error, output)

    def fail(
        self,
        request: Request,
        message: str,
        output: StepOutput,
        *,
        status: int = 422,
        code: str = "generation_failed",
        param: str | None = None,
    ) -> None:
        """End a request with an error and free all it holds; without effect on one that ended.

        By default the error is the request's own.
        """
        if request.sequences:
            self._queues.remove(request)
            self.forget(request.id)
            output.failures.append(RequestFailure(request.id, status, code, message, param))

    def give_up(self, request: Request, error: Exception, output: StepOutput) -> None:
        """End a request that caused `error`; the others go on."""
        logger.error("request %s failed", request.id, exc_info=error)
        status = 500 if is_of_the_machine(error) else 422
        self.fail(request, f"this request failed: {error}", output, status=status)

    # -- one token ---------------------------------------------------------------------------

    def _append(
        self, sequence: Sequence, token: int, report: TokenLogprob | None, output: StepOutput
    ) -> None:
        request = sequence.request
        sequence.history.append(token)
        self.generated_tokens += 1
        if sequence.logprobs is not None and report is not None:
            sequence.logprobs.append(report)
        reason = self._end(sequence, token)
        if request.stream:
            logprobs = None if sequence.logprobs is None else sequence.logprobs[-1:]
            output.deltas.append(AnswerDelta(request.id, sequence.index, [token], reason, logprobs))
        elif reason is not None:
            delta = AnswerDelta(request.id, sequence.index, sequence.generated(), reason, sequence.logprobs)
            output.deltas.append(delta)
        if not request.stream and sequence.num_generated == 1:
            output.begun.append(request.id)
        if reason is not None:
            self._queues.finish(sequence)
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
        generated = sequence.history.length - sequence.request.prompt_length
        return "length" if generated >= params.max_new_tokens else None

    def _complete(self, request: Request, output: StepOutput) -> None:
        output.done.append(request.id)
        self.forget(request.id)

    # -- beams -------------------------------------------------------------------------------

    def _advance_beams(
        self,
        sequences: list[Sequence],
        first: int,
        candidates: Candidates,
        reports: Reports | None,
        output: StepOutput,
    ) -> None:
        """One step of a request's beam search; `first` is the place of its first beam in the step."""
        request = sequences[0].request
        for sequence in sequences:
            sequence.pending = 0
        if (
            request.beams is not None
            and request.params.is_constrained
            and not has_chance(candidates.scores).any()
        ):
            self._deliver(request, output)  # there are no further answers
            return
        if request.beams is None or not np.isfinite(candidates.scores[0]):
            self.fail(request, NOT_FINITE, output)
            return
        length = sequences[0].num_generated + 1
        if length == 1 and not request.stream:
            output.begun.append(request.id)
        stops = candidates.stops
        tails: list[bytes] = []
        if request.params.stop:
            stops, tails = self._match_stops(request, sequences, candidates)
        ends = np.ones_like(stops) if length >= request.params.max_new_tokens else stops

        def finish(candidate: int) -> Hypothesis:
            beam = sequences[candidates.parents[candidate]].fork(0)
            beam.history.append(candidates.tokens[candidate])
            report(beam, candidate)
            return Hypothesis(beam.history, bool(stops[candidate]), beam.logprobs)

        def report(beam: Sequence, candidate: int) -> None:
            """Note the log probability of a candidate's token, where it is wanted."""
            if beam.logprobs is not None and reports is not None and candidates.logprobs is not None:
                line, logprob = first + candidates.parents[candidate], float(candidates.logprobs[candidate])
                beam.logprobs.append(reports.of(line, candidates.tokens[candidate], logprob=logprob))

        place = sequences[0].history.length
        survivors = request.beams.advance(candidates, ends, length, finish)
        self.generated_tokens += len(survivors)
        if request.beams.done:
            self._deliver(request, output)
            return
        beams = self._reorder(request, sequences, [candidates.parents[index] for index in survivors])
        for beam, candidate in zip(beams, survivors, strict=True):
            token = candidates.tokens[candidate]
            beam.history.append(token)
            self._moves.tokens.append((beam.slot, place, token))
            report(beam, candidate)
            if tails:
                beam.stop_tail = tails[candidate]

    def _match_stops(
        self, request: Request, sequences: list[Sequence], candidates: Candidates
    ) -> tuple[np.ndarray, list[bytes]]:
        """Per candidate: whether a token or a stop string ends it, and its new stop tail."""
        matcher = self._matchers[request.id]
        steps = [
            matcher.step(sequences[parent].stop_tail, token)
            for parent, token in zip(candidates.parents, candidates.tokens, strict=True)
        ]
        return candidates.stops | [hit for _, hit in steps], [tail for tail, _ in steps]

    def _reorder(self, request: Request, sequences: list[Sequence], parents: list[int]) -> list[Sequence]:
        """Let the beams continue their `parents`: the first child goes on as its parent, a further one
        takes the place of a beam without children."""
        childless = [sequence for index, sequence in enumerate(sequences) if index not in parents]
        beams: list[Sequence] = []
        used: set[int] = set()
        for parent in parents:
            beam = sequences[parent]
            if parent in used:
                beam = childless.pop()
                self._queues.continue_with(beam, sequences[parent])
                self._moves.copies.append((sequences[parent].slot, beam.slot))
            used.add(parent)
            beams.append(beam)
        request.sequences = beams
        return beams

    def _deliver(self, request: Request, output: StepOutput) -> None:
        assert request.beams is not None
        answers = request.beams.results()
        if len(answers) < request.params.num_choices:
            message = f"only {len(answers)} of {request.params.num_choices} answers are possible"
            self.fail(request, message, output, param="n")
            return
        for index, answer in enumerate(answers):
            tokens = answer.history.slice(request.prompt_length, len(answer.history))
            reason: FinishReason = "stop" if answer.stopped else "length"
            output.deltas.append(AnswerDelta(request.id, index, tokens, reason, answer.logprobs))
        self._queues.remove(request)
        self._complete(request, output)
