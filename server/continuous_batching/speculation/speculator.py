"""Which tokens are guessed in a step: drafts where they pay, and a probe now and then where not.

Plain data only. A drafted token is computed as if it were known; the decoder then chooses the token
of every place as ever, and drafts are accepted as far as they equal its choice. So answers do not
depend on anything in here, only their speed does.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

from protocol.generation import MAX_NGRAM_SIZE
from server.continuous_batching.scheduler.plan import Draft
from server.continuous_batching.scheduler.request import Request, Sequence
from server.continuous_batching.speculation.ngrams import NgramIndex
from server.continuous_batching.speculation.payoff import Acceptance, StepCost, worthwhile

_SERVER_MEMORY, _SEQUENCE_MEMORY = 0.98, 0.8

_PROBE_TOKENS = 4
_PROBE_SHARE = 0.01
"""Share of all time that drafts which are not expected to pay may take."""
_LEAST_PROBE = 0.1
"""What a probe is charged with at least, in steps."""


class Lookup:
    """What a sequence's drafts are made from, and how good they have been."""

    __slots__ = ("acceptance", "index")

    def __init__(self, max_ngram_size: int, prior: Acceptance) -> None:
        self.index = NgramIndex(max_ngram_size)
        self.acceptance = Acceptance(max_ngram_size, _SEQUENCE_MEMORY, prior)


class Speculator:
    """Drafts for the sequences of requests that ask for it.

    Args:
        cost: of steps; learns as they are observed.
    """

    def __init__(self, cost: StepCost | None = None) -> None:
        self.cost = cost or StepCost()
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self._acceptance = Acceptance(MAX_NGRAM_SIZE, _SERVER_MEMORY)
        self._watched: set[str] = set()
        self._probe_seconds = 0.0
        self._probes = 0

    # -- requests come and go --------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no live request wants drafts."""
        return not self._watched

    def watch(self, request: Request) -> None:
        if request.params.prompt_lookup.num_tokens:
            self._watched.add(request.id)

    def forget(self, request_id: str) -> None:
        self._watched.discard(request_id)

    # -- one step --------------------------------------------------------------------------

    def propose(self, decodes: Seq[Sequence], tokens: int, budget: int) -> list[Draft]:
        """Drafts for a step.

        Args:
            decodes: sequences that decode in it.
            tokens: all that it computes anyway.
            budget: most tokens that it may compute besides.
        """
        rows = len(decodes)
        if tokens == rows and self.cost.is_stale(tokens):
            return []  # what drafts cost is seen only beside steps without them
        value = float(self.cost.seconds(rows)) / max(rows, 1)
        price = float(self.cost.seconds(tokens + 1) - self.cost.seconds(tokens))
        found: list[Draft] = []
        asleep: list[tuple[int, Sequence]] = []
        for line, sequence in enumerate(decodes):
            if _most_tokens(sequence) <= 0:
                continue
            if self._lookup_of(sequence).acceptance.best * value < price:
                asleep.append((line, sequence))
            else:
                found += self._draft(line, sequence)
        drafts = []
        if found:
            rates = [self._lookup_of(d.sequence).acceptance.rate(d.ngram_size) for d in found]
            lengths = worthwhile(rates, [len(d.tokens) for d in found], rows, tokens, budget, self.cost)
            for draft, length in zip(found, lengths, strict=True):
                if length:
                    del draft.tokens[length:]
                    drafts.append(draft)
                else:
                    asleep.append((draft.line, draft.sequence))
        taken = sum(len(draft.tokens) for draft in drafts)
        return drafts + self._probe(asleep, tokens + taken, budget - taken)

    def _probe(self, asleep: list[tuple[int, Sequence]], tokens: int, budget: int) -> list[Draft]:
        """Now and then a draft that is not expected to pay, each sequence in its turn: texts change."""
        least = _LEAST_PROBE * float(self.cost.seconds(tokens))
        if not asleep or budget < _PROBE_TOKENS or self._probe_seconds < least:
            return []
        self._probes += 1
        drafts = self._draft(*asleep[self._probes % len(asleep)])
        for draft in drafts:
            del draft.tokens[_PROBE_TOKENS:]
            extra = float(self.cost.seconds(tokens + len(draft.tokens)) - self.cost.seconds(tokens))
            if extra > self._probe_seconds:
                return []
            self._probe_seconds -= max(extra, least)
        return drafts

    def _lookup_of(self, sequence: Sequence) -> Lookup:
        if sequence.lookup is None:
            sequence.lookup = Lookup(sequence.request.params.prompt_lookup.max_ngram_size, self._acceptance)
        return sequence.lookup

    def _draft(self, line: int, sequence: Sequence) -> list[Draft]:
        """The draft of a sequence, if its end was seen before."""
        index, history = self._lookup_of(sequence).index, sequence.history
        index.extend(history.slice(len(index), len(history)))
        tokens, size = index.continuation(_most_tokens(sequence))
        return [Draft(sequence, line, tokens, size)] if tokens else []

    # -- what came of it -------------------------------------------------------------------

    def observe_draft(self, draft: Draft, accepted: int) -> None:
        """The first `accepted` tokens of `draft` were right."""
        drafted = len(draft.tokens)
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self._acceptance.observe(draft.ngram_size, drafted, accepted)
        self._lookup_of(draft.sequence).acceptance.observe(draft.ngram_size, drafted, accepted)

    def observe_step(self, tokens: int, seconds: float) -> None:
        """A step of `tokens` tokens, drafts included, took `seconds` with all that belongs to it."""
        self.cost.observe(tokens, seconds)
        self._probe_seconds = min(self._probe_seconds + _PROBE_SHARE * seconds, seconds)


def _most_tokens(sequence: Sequence) -> int:
    """Drafted tokens that are of use: the step chooses one more than are accepted."""
    params = sequence.request.params
    return min(params.prompt_lookup.num_tokens, params.max_new_tokens - sequence.num_generated - 1)
