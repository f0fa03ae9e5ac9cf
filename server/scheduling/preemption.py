"""Is it cheaper to swap a request out and in again, or to compute it anew? Learnt by measuring."""

from __future__ import annotations

from typing import Literal

from server.scheduling.step import Timings

SwapPolicy = Literal["swap", "recompute", "auto"]


class RunningMean:
    """Exponentially weighted mean of a ratio; None before the first observation."""

    def __init__(self, weight: float = 0.1) -> None:
        self._weight = weight
        self.value: float | None = None

    def observe(self, value: float) -> None:
        self.value = value if self.value is None else self.value + self._weight * (value - self.value)


class PreemptionCost:
    """Measured cost of both ways to make room.

    Args:
        policy: ``swap`` and ``recompute`` fix the way, ``auto`` compares.
    """

    def __init__(self, policy: SwapPolicy = "auto") -> None:
        self.policy = policy
        self.seconds_per_byte = RunningMean()
        self.seconds_per_token = RunningMean()

    def observe_copy(self, size: int, seconds: float) -> None:
        """`size` bytes were copied between the pools in `seconds`."""
        self.seconds_per_byte.observe(seconds / size)

    def observe_prefill(self, tokens: int, seconds: float) -> None:
        """A forward pass of mostly prompt tokens took `seconds`."""
        self.seconds_per_token.observe(seconds / tokens)

    def observe(self, timings: Timings) -> None:
        """What a worker timed."""
        for size, seconds in timings.copies:
            self.observe_copy(size, seconds)
        for tokens, seconds in timings.prompts:
            self.observe_prefill(tokens, seconds)

    def prefers_swap(self, size: int, tokens: int) -> bool:
        """Whether to swap a request of `size` bytes and `tokens` tokens; until both are measured, swap."""
        if self.policy != "auto":
            return self.policy == "swap"
        copy, compute = self.seconds_per_byte.value, self.seconds_per_token.value
        return copy is None or compute is None or 2 * size * copy <= tokens * compute
