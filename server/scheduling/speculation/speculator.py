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
from server.scheduling.limits import DRAFTED_LINES
from server.scheduling.plan import Draft, Plan
from server.scheduling.request import Request, Sequence
from server.scheduling.speculation.ngrams import NgramIndex
from server.scheduling.speculation.payoff import Acceptance, StepCost, worthwhile

SERVER_MEMORY, SEQUENCE_MEMORY = 0.98, 0.8

PROBE_TOKENS = 4
_PROBE_SHARE = 0.005
"""Share of all time that drafts which are not expected to pay may take."""
_LEAST_PROBE = 0.1
"""What a probe is charged with at least, in steps."""
_LEAST_FRUITS, _NEWEST_FRUIT = 0.25, 0.05
"""Below that share of waits that bring drafts nobody waits; what the newest of them counts."""


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
        self.acceptance = Acceptance(wanted.max_ngram_size, SEQUENCE_MEMORY, prior)
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
        self._acceptance = Acceptance(MAX_NGRAM_SIZE, SERVER_MEMORY)
        self._lookups: dict[str, dict[int, Lookup]] = {}  # by request id and answer
        self._probe_seconds = 0.0
        self._probes = 0
        self._waited = self._granted = False
        self._fruits = 1.0  # share of waits that were followed by drafts

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

    def launched(self, plan: Plan) -> None:
        """A step was launched, whose sequences are still as they were planned; texts need nothing of it."""

    # -- one step --------------------------------------------------------------------------

    def awaits(self, running: Seq[Request]) -> bool:
        """Whether the next step of these requests is worth waiting for the tokens that are under way, since
        drafts are to follow them.

        Judged by the tokens before them: where one end of a text was seen before, the next often was, too.
        """
        if self.is_idle or len(running) >= DRAFTED_LINES:
            return False
        decodes = [s for r in running if r.is_decoding and not r.held for s in r.sequences if not s.is_full]
        rows, budget = len(decodes), DRAFTED_LINES - len(decodes)
        if budget < 1 or not rows or self.cost.is_stale(rows):
            return False
        return self._awaits(decodes, budget)

    def _awaits(self, decodes: Seq[Sequence], budget: int) -> bool:
        rows, self._waited, self._granted = len(decodes), False, False
        hopeful, hopeless = self._sorted(self._guesses(decodes, ahead=True), rows)
        if self._fruits > _LEAST_FRUITS and any(self._lengths(hopeful, rows, budget)):
            self._waited = True
        elif hopeful or hopeless:
            self._waited = self._granted = self._grant_probe(rows, budget)
        return self._waited

    def propose(self, decodes: Seq[Sequence], budget: int) -> list[Draft]:
        """Drafts for a step. What they cost beside prompts is taken to be what they cost without.

        Args:
            decodes: sequences that decode in it.
            budget: most tokens that it may compute besides.
        """
        rows = len(decodes)
        if budget < 1 or self.cost.is_stale(rows):
            return []  # what drafts cost is seen only beside steps without them
        hopeful, hopeless = self._sorted(self._guesses(decodes), rows)
        lengths = self._lengths(hopeful, rows, budget)
        drafts = [g.draft(length) for g, length in zip(hopeful, lengths, strict=True) if length]
        hopeless += [g for g, length in zip(hopeful, lengths, strict=True) if not length]
        if hopeless:
            taken = sum(len(draft.tokens) for draft in drafts)
            drafts += self._probe(hopeless, rows + taken, budget - taken)
        drafts = self._cut(drafts)
        if self._waited:
            self._fruits += _NEWEST_FRUIT * (bool(drafts) - self._fruits)
        self._waited = self._granted = False
        return drafts

    def _cut(self, drafts: Seq[Draft]) -> list[Draft]:
        """What grammars allow of `drafts`."""
        if self.allowed is not None:
            for draft in drafts:
                del draft.tokens[self.allowed(draft.sequence, draft.tokens) :]
        return [draft for draft in drafts if draft.tokens]

    def _sorted(self, guesses: Iterator[Guess], rows: int) -> tuple[list[Guess], list[Guess]]:
        """(those that may gain more than they cost, those that do not)."""
        cost = self.cost
        plain = cost.seconds(rows)
        least_rate = (cost.seconds(rows + 1) - plain) * rows / (plain or 1.0)
        hopeful: list[Guess] = []
        hopeless: list[Guess] = []
        for guess in guesses:
            (hopeless if guess.rate < least_rate else hopeful).append(guess)
        return hopeful, hopeless

    def _lengths(self, hopeful: Seq[Guess], rows: int, budget: int) -> list[int]:
        """How many tokens of each guess are to be computed."""
        if not hopeful:
            return []
        rates, most = [guess.rate for guess in hopeful], [guess.max_tokens for guess in hopeful]
        return worthwhile(rates, most, rows, budget, self.cost)

    def _guesses(self, decodes: Seq[Sequence], *, ahead: bool = False) -> Iterator[Guess]:
        """Of the sequences that want drafts, those whose ends were seen before.

        Args:
            ahead: also those whose newest token is under way, by the end before it.
        """
        for line, sequence in enumerate(decodes):
            lookups = self._lookups.get(sequence.request.id)
            if lookups is None or (sequence.pending and not ahead):
                continue
            lookup = lookups.get(sequence.index)
            if lookup is None:
                lookup = lookups[sequence.index] = Lookup(sequence.request, self._acceptance)
            index, length, left = lookup.index, len(sequence.history), lookup.last - sequence.length
            if left <= 0:
                continue
            index.extend(sequence.history.slice(len(index), length))
            place, size = index.find()
            if size:
                yield Guess(sequence, lookup, line, place, size, min(lookup.max_tokens, left))

    def _probe(self, hopeless: Seq[Guess], tokens: int, budget: int) -> list[Draft]:
        """Now and then a draft that is not expected to pay, each sequence in its turn: texts change."""
        if not (self._granted or self._grant_probe(tokens, budget)):
            return []
        self._probes += 1
        return [hopeless[self._probes % len(hopeless)].draft(PROBE_TOKENS)]

    def _grant_probe(self, tokens: int, budget: int, more: float = 0.0) -> bool:
        """Whether a probe beside `tokens` tokens can be afforded; it is paid for then.

        Args:
            more: seconds that it takes beside the step.
        """
        plain = self.cost.seconds(tokens)
        price = max(self.cost.seconds(tokens + PROBE_TOKENS) - plain, _LEAST_PROBE * plain) + more
        if budget < PROBE_TOKENS or self._probe_seconds < price:
            return False
        self._probe_seconds -= price
        return True

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
        """A step of `tokens` tokens, drafts but no prompts, took `seconds` with all that belongs to it."""
        self.cost.observe(tokens, seconds)
        self._probe_seconds = min(self._probe_seconds + _PROBE_SHARE * seconds, seconds)
