"""From logits to tokens, for every strategy in one batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.device.host_stores import HostStores
from server.sampling.beam_continuations import Continuations, PendingCandidates
from server.sampling.choice import Choose, choose_by_torch, choose_tokens
from server.sampling.chosen import ChosenTokens, PendingTokens, result_of
from server.sampling.gpu_sampler import GpuSampler
from server.sampling.hidden_states import StepStates
from server.sampling.lines import Lines
from server.sampling.logprobs import StepLogprobs
from server.sampling.pipeline import change_scores
from server.sampling.prompt_scores import PromptScores
from server.sampling.sampling_state import SamplingState
from server.sampling.step_logits import StepLogits
from server.sampling.verification import DraftLines
from server.scheduling.beam_search import Candidates
from server.scheduling.step import FAILED, SampleInput, StepInput, StepResult


class Decoder:
    """Chooses tokens for all lines of a step at once.

    Args:
        state: what each slot's request asks for.
        choose: chooses tokens from scores that stages have changed.
        sampler: does all of that where tokens stay on the device from step to step, else None.
    """

    def __init__(
        self, state: SamplingState, choose: Choose = choose_by_torch, sampler: GpuSampler | None = None
    ) -> None:
        self.state = state
        self.sampler = sampler
        self._choose = choose
        self._stores = HostStores()
        self._continuations = Continuations(state)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.state.vocab_size

    def choose(
        self, forward: StepLogits, step: StepInput, sample: SampleInput
    ) -> ChosenTokens | PendingTokens:
        """Choose the next token of every sequence: on the device where it keeps tokens, but for beams.

        Args:
            forward: logits of the step's lines; overwritten.
            step: what was computed.
            sample: what else is needed for it.
        """
        slots, positions = step.sampled()
        self.state.take(sample)
        prompts = None
        if forward.scored is not None:
            prompts = PromptScores(forward.scored, step, self.state.tokens)
        states = None if forward.states is None else StepStates(forward.states, step)
        if self.sampler is None:
            result = self.decode(forward.sampled.float(), step, sample)
            return ChosenTokens(_with(result, prompts, states))
        state, logits = self.state, forward.sampled
        logprobs = StepLogprobs(logits, state.logprobs[slots])
        beams = np.flatnonzero(state.beams[slots])
        found = self._continue_beams(logits, slots, positions, beams, sample) if beams.size else None
        if beams.size == len(slots):
            tokens = torch.full((len(slots),), FAILED, dtype=torch.int32, device=state.device)
        else:
            tokens = self.sampler.choose(forward, slots, positions)[: len(slots)]
        if logprobs:
            logprobs.send(tokens.long().clamp(min=0))
        drafts = DraftLines.of_step(step)
        pending = PendingTokens(*self._stores.send(tokens), logprobs, prompts, states, drafts, found)
        if found is None or not (state.logprobs[slots[beams]] >= 0).any():
            return pending
        result = pending.read()  # what is reported of beams is known once their continuations are
        self._report_candidates(result.candidates, slots, beams, logprobs)
        return ChosenTokens(result)

    def _continue_beams(
        self, logits: Tensor, slots: np.ndarray, positions: np.ndarray, beams: np.ndarray, sample: SampleInput
    ) -> PendingCandidates:
        """The best continuations of the beams, which stand at lines `beams`; `logits` stay as they are."""
        if len(beams) < len(slots):
            logits = logits[self.state.on_device(beams)]
        slots, positions = slots[beams], positions[beams]
        if self.state.is_plain(slots):
            return self._continuations.of_logits(logits, slots, sample.beam_scores)
        scores = torch.log_softmax(logits.float(), dim=-1)
        change_scores(scores, self.state, Lines.of_step(slots, positions))
        return self._continuations.of_scores(scores, slots, positions, sample.beam_scores)

    def _report_candidates(
        self, candidates: list[Candidates], slots: np.ndarray, beams: np.ndarray, logprobs: StepLogprobs
    ) -> None:
        """Add their log probabilities where the requests want them; `beams` are the lines of all beams."""
        begin = 0
        for found in candidates:
            slot = slots[beams[begin]]
            if self.state.logprobs[slot] >= 0:
                lines = beams[begin] + np.array(found.parents)
                found.logprobs = logprobs.of(lines, np.array(found.tokens))
            begin += int(self.state.num_beams[slot])

    def warm_up(self, forward: StepLogits) -> None:
        """Choose from these logits in all ways, so that every kernel is compiled."""
        if self.sampler is not None:
            from server.sampling.triton.beams import best_continuations

            best_continuations(forward.logits, torch.zeros(len(forward.logits), device=self.state.device), 2)
            self._stores.send(torch.zeros(1, dtype=torch.int32, device=self.state.device))
            self.sampler.warm_up(forward)

    def decode(self, logits: Tensor, step: StepInput, sample: SampleInput) -> StepResult:
        """Choose the next token of every sequence where the device keeps none.

        Args:
            logits: float32 [lines, vocab] of the step's lines; overwritten.
        """
        state = self.state
        slots, positions = step.sampled()
        drafts = DraftLines.of_step(step)
        lines = Lines.of_step(slots, positions, drafts)
        logprobs = StepLogprobs(logits, state.logprobs[slots])
        beams = np.flatnonzero(state.beams[slots])
        if beams.size == len(slots):
            logits = torch.log_softmax(logits, dim=-1)
        elif beams.size:
            logits[beams] = torch.log_softmax(logits[beams], dim=-1)
        change_scores(logits, state, lines)
        if beams.size == len(slots):
            tokens = np.full(len(slots), FAILED)
        else:
            tokens = choose_tokens(logits, state, lines, self._choose)
        logprobs.send(torch.from_numpy(tokens).clamp(min=0))
        valid = tokens != FAILED
        valid[beams] = False  # theirs follow from the candidates
        if drafts is not None:
            valid[drafts.rejected(drafts.accepted(tokens))] = False
        result = result_of(tokens, logprobs, drafts)
        state.record(slots[valid], positions[valid] + 1, tokens[valid])
        if beams.size:
            scores = logits if beams.size == len(slots) else logits[beams]
            found = self._continuations.of_scores(scores, slots[beams], positions[beams], sample.beam_scores)
            result.candidates = found.read()
            self._report_candidates(result.candidates, slots, beams, logprobs)
        return result


def _with(result: StepResult, prompts: PromptScores | None, states: StepStates | None) -> StepResult:
    """`result`, with what else the step gives back."""
    if prompts is not None:
        result.prompts = prompts.read()
    if states is not None:
        result.states = states.read()
    return result
