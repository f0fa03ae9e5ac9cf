"""How long steps take, learned from the steps themselves, and how much of a prompt fits a promised time."""

from __future__ import annotations

from server.scheduling.plan import Plan
from server.scheduling.speculation.payoff import StepCost

LEAST_CHUNK = 128
"""Prompt tokens that a step takes however long it may last: prompts must go on. On a GPU they cost next to
nothing beside the weights, which are read anyway."""

_FEW_STEPS = 4
"""A backlog of prompts that fits in this many replayed steps is split into them. A longer step is launched
kernel by kernel: with an 8b that takes the host 24 ms, in which it reads no tokens."""

_GROWTH = 1.25
"""From one size that is considered to the next."""


class StepTime:
    """Seconds that a step takes, learned from the last ones, apart for steps with prompts and without.

    Args:
        target: seconds that a step shall take at most where prompts go on beside decodes; None: any time.
        replayed: tokens of the longest step with prompts that is replayed as CUDA graphs; 0: none is.
    """

    def __init__(self, target: float | None = None, replayed: int = 0) -> None:
        self.target = target
        self.replayed = replayed
        self._decodes = StepCost()
        self._prompts = StepCost()

    def observe(self, plan: Plan, seconds: float) -> None:
        """A step took `seconds` on the device."""
        if plan.num_tokens:
            self._cost_of(plan).observe(plan.num_tokens, seconds)

    def expected(self, plan: Plan) -> float | None:
        """Seconds that a step will take; None until some of its kind and size were seen."""
        cost, tokens = self._cost_of(plan), plan.num_tokens
        return None if not tokens or cost.is_stale(tokens) else cost.seconds(tokens)

    def of_decodes(self, rows: int) -> float | None:
        """Seconds of a step of `rows` decodes alone; None where none of about that size was seen lately."""
        return None if self._decodes.is_stale(rows) else self._decodes.seconds(rows)

    def _cost_of(self, plan: Plan) -> StepCost:
        return self._prompts if plan.chunks else self._decodes

    def chunk_tokens(self, decodes: int, most: int, waiting: int) -> int:
        """How many of the `waiting` prompt tokens a step may compute beside `decodes` others, at most `most`.

        A size that was not seen lately is taken to cost in proportion to the last one that was. That is more
        than it will, so that sizes are approached from below.
        """
        replayed = self.replayed - decodes
        if decodes and replayed >= LEAST_CHUNK and waiting <= _FEW_STEPS * replayed:
            most = min(most, replayed)
        if self.target is None or not decodes or most <= LEAST_CHUNK:
            return most
        best = size = LEAST_CHUNK
        seconds = self._prompts.seconds(decodes + size)
        while size < most:
            last, size = size, min(most, int(size * _GROWTH))
            tokens = decodes + size
            if self._prompts.is_stale(tokens):
                seconds *= tokens / (decodes + last)
            else:
                seconds = self._prompts.seconds(tokens)
            if not 0.0 < seconds <= self.target:
                break
            best = size
        return best
