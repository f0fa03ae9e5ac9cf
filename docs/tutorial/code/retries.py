"""Chapter 11: an overload of ten seconds, with endless retries and with the gateway's retry budget.

.venv/bin/python -m docs.tutorial.code.retries
"""

from __future__ import annotations

from collections import deque

from client.relay.retry import RetryBudget
from docs.tutorial.code.common import table

CAPACITY = 100.0
"""Requests a second that the servers answer, if they do nothing else."""
REFUSAL = 0.3
"""What saying no costs them, as a share of an answer."""
MAX_ATTEMPTS = 20


class Endless:
    def earn(self, ratio: float) -> None: ...

    def spend(self) -> bool:
        return True


def simulate(budget: RetryBudget | Endless, seconds: int) -> list[tuple[int, int, int]]:
    """(new requests, attempts, answers) of each second; there are too many from 10 to 19."""
    again: deque[int] = deque()  # attempts that each request has made, to be repeated this second
    history = []
    for second in range(seconds):
        new = 140 if 10 <= second < 20 else 80
        for _ in range(new):
            budget.earn(0.2)
        attempts = [*again, *[0] * new]
        again.clear()
        # answered + REFUSAL × refused = CAPACITY, if there are more than that
        answered = len(attempts)
        if answered > CAPACITY:
            answered = max(0, int((CAPACITY - REFUSAL * len(attempts)) / (1 - REFUSAL)))
        history.append((new, len(attempts), answered))
        for made in attempts[answered:]:
            if made + 1 < MAX_ATTEMPTS and budget.spend():
                again.append(made + 1)
    return history


def main(argv: list[str] | None = None) -> None:
    plain, bounded = simulate(Endless(), 61), simulate(RetryBudget(), 61)
    seconds = (5, 12, 15, 19, 25, 30, 60)
    rows = [[second, *plain[second], *bounded[second][1:]] for second in seconds]
    table(["second", "new", "attempts", "answered", "attempts (budget)", "answered (budget)"], rows)


if __name__ == "__main__":
    main()
