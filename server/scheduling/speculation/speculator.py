"""Which tokens are guessed in a step: drafts where they pay, and a probe now and then where not.

Plain data only. A drafted token is computed as if it were known; the decoder then chooses the token
of every place as ever, and drafts are accepted as far as they equal its choice. So answers do not
depend on anything in here, only their speed does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from protocol.generation import MAX_NGRAM_SIZE
from server.scheduling.plan import Draft
from server.scheduling.request import Request, Sequence
from server.scheduling.speculation.ngrams import NgramIndex
from server.scheduling.speculation.payoff import Acceptance, StepCost, worthwhile

_SERVER_MEMORY, _SEQUENCE_MEMORY = 0.98, 0.8

_PROBE_TOKENS = 4
_PROBE_SHARE = 0.005
"""Share of all time that drafts which are not expected to pay may take."""
_LEAST_PROBE = 0.1
"""What a probe is charged with at least, in steps."""


class Lookup:
    """What a sequence's drafts are made from, and how good they have been.

    Attributes:
        max_tokens: of a draft.
        last: length that the sequence has when one more token completes it.
    """

    __slots__ = ("acceptance", "index", "last", "max_tokens")

    def __init__(self, request: Request, prior: Acceptance) -> None:
        wanted = request.params.prompt_lookup
        self.index = NgramIndex(wanted.max_ngram_size)
        self.acceptance = Acceptance(wanted.max_ngram_size, _SEQUENCE_MEMORY, prior)
        self.max_tokens = wanted.num_tokens
        self.last = request.prompt_length + request.params.max_new_tokens - 1


@dataclass(slots=True)
class Guess:
    """A place where a sequence's end was before: a draft that is not written out yet."""

    sequence: Sequence
    lookup: Lookup
    line: int
    place: int
    ngram_size: int
    max_tokens: int

    @property
    def rate(self) -> float:
        return self.lookup.acceptance.rates[self.ngram_size]

    def draft(self, length: int) -> Draft:
        tokens = self.lookup.index.copy(self.place, min(length, self.max_tokens))
        return Draft(self.sequence, self.line, tokens, self.ngram_size)


class Speculator:
    """Drafts for the sequences of requests that ask for it.

    Args:
        cost: of steps; learns as they are observed.

    Attributes:
        allowed: how many of the drafted tokens the grammar of a sequence allows.
    """

    def __init__(self, cost: StepCost | None = None) -> None:
        self.cost = cost or StepCost()
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.allowed: Callable[[Sequence, list[int]], int] | None = None
        self._acceptance = Acceptance(MAX_NGRAM_SIZE, _SERVER_MEMORY)
        self._lookups: dict[str, dict[int, Lookup]] = {}  # by request id and answer
        self._probe_seconds = 0.0
        self._probes = 0

    # -- requests come and go --------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no live request wants drafts."""
        return not self._lookups

    def watch(self, request: Request) -> None:
        if request.params.prompt_lookup.num_tokens:
            self._lookups[request.id] = {}

    def forget(self, request_id: str) -> None:
        self._lookups.pop(request_id, None)

    # -- one step --------------------------------------------------------------------------

    def propose(self, decodes: Seq[Sequence], tokens: int, budget: int) -> list[Draft]:
        """Drafts for a step.

        Args:
            decodes: sequences that decode in it.
            tokens: all that it computes anyway.
            budget: most tokens that it may compute besides.
        """
        rows, cost = len(decodes), self.cost
        if tokens == rows and cost.is_stale(tokens):
            return []  # what drafts cost is seen only beside steps without them
        least_rate = (cost.seconds(tokens + 1) - cost.seconds(tokens)) * rows / (cost.seconds(rows) or 1.0)
        hopeful: list[Guess] = []
        hopeless: list[Guess] = []
        for guess in self._guesses(decodes):
            (hopeless if guess.rate < least_rate else hopeful).append(guess)
        drafts: list[Draft] = []
        if hopeful:
            rates, most = [g.rate for g in hopeful], [g.max_tokens for g in hopeful]
            lengths = worthwhile(rates, most, rows, tokens, budget, cost)
            drafts = [g.draft(length) for g, length in zip(hopeful, lengths, strict=True) if length]
            hopeless += [g for g, length in zip(hopeful, lengths, strict=True) if not length]
        if hopeless:
            taken = sum(len(draft.tokens) for draft in drafts)
            drafts += self._probe(hopeless, tokens + taken, budget - taken)
        if self.allowed is not None:
            for draft in drafts:
                del draft.tokens[self.allowed(draft.sequence, draft.tokens) :]
        return [draft for draft in drafts if draft.tokens]

    def _guesses(self, decodes: Seq[Sequence]) -> Iterator[Guess]:
        """Of the sequences that want drafts, those whose ends were seen before."""
        for line, sequence in enumerate(decodes):
            lookups = self._lookups.get(sequence.request.id)
            if lookups is None:
                continue
            lookup = lookups.get(sequence.index)
            if lookup is None:
                lookup = lookups[sequence.index] = Lookup(sequence.request, self._acceptance)
            index, length = lookup.index, len(sequence.history)
            if length >= lookup.last:
                continue
            index.extend(sequence.history.slice(len(index), length))
            place, size = index.find()
            if size:
                yield Guess(sequence, lookup, line, place, size, min(lookup.max_tokens, lookup.last - length))

    def _probe(self, hopeless: Seq[Guess], tokens: int, budget: int) -> list[Draft]:
        """Now and then a draft that is not expected to pay, each sequence in its turn: texts change."""
        plain = self.cost.seconds(tokens)
        price = max(self.cost.seconds(tokens + _PROBE_TOKENS) - plain, _LEAST_PROBE * plain)
        if budget < _PROBE_TOKENS or self._probe_seconds < price:
            return []
        self._probe_seconds -= price
        self._probes += 1
        return [hopeless[self._probes % len(hopeless)].draft(_PROBE_TOKENS)]

    # -- what came of it -------------------------------------------------------------------

    def observe_draft(self, draft: Draft, accepted: int) -> None:
        """The first `accepted` tokens of `draft` were right."""
        drafted = len(draft.tokens)
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self._acceptance.observe(draft.ngram_size, drafted, accepted)
        sequence = draft.sequence
        lookup = self._lookups.get(sequence.request.id, {}).get(sequence.index)
        if lookup is not None:
            lookup.acceptance.observe(draft.ngram_size, drafted, accepted)

    def observe_step(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` tokens, drafts included, took `seconds` with all that belongs to it."""
        self.cost.observe(tokens, seconds)
        self._probe_seconds = min(self._probe_seconds + _PROBE_SHARE * seconds, seconds)
