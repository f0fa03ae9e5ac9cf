"""Drafts of a smaller model or a head, for sequences for which a look at their own text promises nothing."""

from __future__ import annotations

from collections.abc import Container
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from server.scheduling.plan import Draft, Plan
from server.scheduling.request import Request, Sequence
from server.scheduling.speculation.payoff import LEAST_GAIN, Acceptance, DraftCost, StepCost
from server.scheduling.speculation.speculator import (
    PROBE_TOKENS,
    SERVER_MEMORY,
    Speculator,
)

_OF_MODEL = 0
"""In place of the size of an n-gram."""

_PRIOR, _PRIOR_WEIGHT = 0.8, 8.0
"""Acceptance rate assumed of an untested model, and its weight in tokens. High, for whoever configures a
draft model expects it to be good."""
_MEMORY = 0.98
"""Decay per draft of a sequence's acceptance rate. Of 50 drafts the rate is known to some 5 %; of 20, with
0.95, only to 7 %: models that are right with 0.6 were given up for bad luck, and there drafts gain little."""
_RESTING, _ALL_RESTING = 0.98, 0.999
"""Decay per step without a draft, of a sequence's acceptance rate and of the server's."""
_BELIEVED = 0.05
"""Share of a gain that is expected, but not tried, that is believed: it may rest on a prior alone."""


@dataclass(slots=True)
class Proposal:
    """What a model drafted.

    Attributes:
        tokens: for each sequence; none where there was no room for it.
        seconds: that it took.
        caught_up: more than the drafts was computed: prompts, or tokens that others had drafted.
    """

    tokens: list[list[int]]
    seconds: float
    caught_up: bool


class Drafter(Protocol):
    """A model that drafts, or a head of one.

    Attributes:
        num_tokens: of a draft at most.
    """

    num_tokens: int

    def propose(self, sequences: Seq[Sequence], count: int) -> Proposal:
        """Guess the next `count` tokens of each, all of whose tokens are known."""

    def follow(self, plan: Plan, watched: Container[str]) -> None:
        """A step of the larger model was launched, and its hidden states can be read until the next one is.

        Called before it changes any of its sequences.

        Args:
            watched: ids of the requests that drafts may be wanted for.
        """

    def forget(self, request_id: str) -> None:
        """A request is gone."""


class ModelSpeculator(Speculator):
    """Drafts by prompt lookup, where a request asks for it and it pays; else by a model, where that pays.

    A model drafts for all of its sequences together, a token of each in a step of its own. So the length is
    one for all, and its price does not depend on how many tokens are right.

    Args:
        model: drafts.
        cost: of steps.

    Attributes:
        draft_cost: of the model's drafts; learns as they are made.
    """

    def __init__(self, model: Drafter, cost: StepCost | None = None) -> None:
        super().__init__(cost)
        self._model = model
        self.draft_cost = DraftCost()
        self._of_all = Acceptance(_OF_MODEL, SERVER_MEMORY, _PRIOR, _PRIOR_WEIGHT)
        self._of_each: dict[str, dict[int, Acceptance]] = {}  # by request id and answer
        self._drafting = 0.0  # seconds, within the step under way
        self._probed = 0
        self._model_granted = False
        self._missed = 0.0  # seconds that drafts were expected to gain in the last step, had there been any
        self._rests = False  # the last step had no draft of the model
        self._value = 0.0  # seconds that a plain step takes for a token

    @property
    def is_idle(self) -> bool:
        return not self._of_each

    def watch(self, request: Request) -> None:
        super().watch(request)
        if not request.params.uses_beams:
            self._of_each[request.id] = {}

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        if self._of_each.pop(request_id, None) is not None:
            self._model.forget(request_id)

    def launched(self, plan: Plan) -> None:
        self._model.follow(plan, self._of_each)

    # -- one step --------------------------------------------------------------------------

    def _awaits(self, decodes: Seq[Sequence], budget: int) -> bool:
        if super()._awaits(decodes, budget):
            return True
        some, rows = self._served(decodes), len(decodes)
        _, count = self._choose(some, rows, rows, budget)
        if not count and some:
            self._model_granted = self._grant_probe(rows, budget, self._probe_price)
        return bool(count) or self._model_granted

    def propose(self, decodes: Seq[Sequence], budget: int) -> list[Draft]:
        drafts = super().propose(decodes, budget)
        granted, self._model_granted = self._model_granted, False
        rows, taken = len(decodes), sum(len(draft.tokens) for draft in drafts)
        budget -= taken
        if budget < 1 or (not taken and self.cost.is_stale(rows)):
            return drafts
        drafted = {draft.line for draft in drafts}
        lines = {s: line for line, s in enumerate(decodes) if not s.pending and line not in drafted}
        some = self._served([*lines])
        chosen, count = self._choose(some, rows, rows + taken, budget)
        if count:
            return drafts + self._cut(self._draft(chosen, count, lines))
        if some and (granted or self._grant_probe(rows + taken, budget, self._probe_price)):
            drafts += self._cut(self._probe_model(some, lines))
        return drafts

    def _probe_model(self, some: Seq[Sequence], lines: dict[Sequence, int]) -> list[Draft]:
        """A draft that is not expected to pay, for each sequence in its turn."""
        self._probed += 1
        count = min(PROBE_TOKENS, self._model.num_tokens)
        return self._draft([some[self._probed % len(some)]], count, lines)

    def _served(self, decodes: Seq[Sequence]) -> list[Sequence]:
        """Those that the model may draft for."""
        return [s for s in decodes if s.request.id in self._of_each and self._left(s) > 0]

    @staticmethod
    def _left(sequence: Sequence) -> int:
        """Most tokens that a draft may have: one more completes the answer."""
        request = sequence.request
        return request.prompt_length + request.params.max_new_tokens - 1 - sequence.length

    def _rate(self, sequence: Sequence) -> Acceptance:
        rates = self._of_each[sequence.request.id]
        found = rates.get(sequence.index)
        if found is None:
            found = rates[sequence.index] = Acceptance(_OF_MODEL, _MEMORY, self._of_all, _PRIOR_WEIGHT)
        return found

    def _choose(self, some: Seq[Sequence], rows: int, tokens: int, budget: int) -> tuple[list[Sequence], int]:
        """(those to draft for, how many tokens of each), so that a step gains most; ([], 0): nothing pays.

        A model that rests begins again once its drafts gain enough and its debt is paid; one that drafts goes
        on until they lose as much. The acceptance rates of sequences that are left out decay towards the
        server's, so that they get another try.
        """
        cost, value = self.cost, self.cost.seconds(rows) / rows
        if not some:
            return [], 0
        self._value = value
        rates = {s: self._rate(s).rates[_OF_MODEL] for s in some}
        line = (cost.seconds(tokens + len(some)) - cost.seconds(tokens)) / len(some)
        chosen = [s for s in some if rates[s] * value >= line]
        most = min(self._model.num_tokens, budget // len(chosen)) if chosen else 0
        drafting = self.draft_cost.curve(len(chosen), most)
        expected, best = 0.0, 0
        least = (LEAST_GAIN if self._rests else -LEAST_GAIN) * cost.seconds(tokens)
        for count in range(1, most + 1):
            expected += sum(rates[s] ** count for s in chosen if self._left(s) >= count)
            price = cost.seconds(tokens + count * len(chosen)) - cost.seconds(tokens)
            gain = expected * value - price - drafting[count]
            if gain > least or (gain == least == 0.0):
                best, least = count, gain
        owes = self._rests and self._probe_seconds < 0.0
        self._missed = least if best and owes else 0.0  # a little of it pays the debt
        if not best or owes:
            chosen, best = [], 0
        for sequence in rates.keys() - set(chosen):
            self._rate(sequence).fade(_OF_MODEL, _RESTING)
        return chosen, best

    @property
    def _probe_price(self) -> float:
        return self.draft_cost.seconds(1, PROBE_TOKENS)

    def _draft(self, chosen: Seq[Sequence], count: int, lines: dict[Sequence, int]) -> list[Draft]:
        proposal = self._model.propose(chosen, count)
        self._drafting += proposal.seconds
        if proposal.caught_up:  # no price contains that: it is a debt of the time for probes
            owed = max(proposal.seconds - self.draft_cost.seconds(len(chosen), count), 0.0)
            self._probe_seconds = max(self._probe_seconds - owed, -owed)
        else:
            self.draft_cost.observe(len(chosen), count, proposal.seconds)
        return [
            Draft(sequence, lines[sequence], tokens[: self._left(sequence)], _OF_MODEL)
            for sequence, tokens in zip(chosen, proposal.tokens, strict=True)
        ]

    def _pay_debt(self, seconds: float) -> None:
        """Let a gain of `seconds` pay for what the model took to catch up; probes get nothing of it."""
        if self._probe_seconds < 0.0:
            self._probe_seconds = min(self._probe_seconds + seconds, 0.0)

    # -- what came of it -------------------------------------------------------------------

    def observe_draft(self, draft: Draft, accepted: int) -> None:
        if draft.ngram_size != _OF_MODEL:
            super().observe_draft(draft, accepted)
            return
        drafted = len(draft.tokens)
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self._of_all.observe(_OF_MODEL, drafted, accepted)
        self._pay_debt(accepted * self._value)
        if draft.sequence.request.id in self._of_each:
            self._rate(draft.sequence).observe(_OF_MODEL, drafted, accepted)

    def observe_step(self, tokens: int, seconds: float) -> None:
        drafting, self._drafting = self._drafting, 0.0
        self._rests = not drafting
        missed, self._missed = self._missed, 0.0
        self._pay_debt(_BELIEVED * missed)
        self.draft_cost.pass_step()
        if not drafting:
            self._of_all.fade(_OF_MODEL, _ALL_RESTING)
        super().observe_step(tokens, seconds - drafting)
