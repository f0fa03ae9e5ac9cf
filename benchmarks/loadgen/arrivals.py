"""When requests are sent.

Closed loop: a number of clients, each sends its next request when the last one is answered. Open loop:
requests are due at times that do not depend on the answers, as with real users; a slow server then
has a growing queue, which a closed loop hides.

==========================  ===================================================================
``closed:N``                N clients
``all``                     everything at once
``poisson:RATE``            RATE requests a second on average, independent of each other
``bursty:RATE:CV``          the same rate in bursts: gaps are gamma distributed with this
                            coefficient of variation (1 is Poisson, 4 is rough)
``ramp:LOW:HIGH``           Poisson whose rate rises from LOW to HIGH
``trace``                   at the times that the trace says
==========================  ===================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.loadgen.traffic import Request
from benchmarks.loadgen.written import split


class ArrivalError(ValueError):
    """Arrivals that are not written as such."""


@dataclass(slots=True, frozen=True)
class Arrivals:
    """How requests arrive; `text` is its written form."""

    text: str
    clients: int | None = None
    """Clients of the closed loop; None: open loop."""
    rates: tuple[float, float] = (float("inf"), float("inf"))
    """Requests a second at the start and at the end."""
    variation: float = 1.0
    """Coefficient of variation of the gaps."""
    from_trace: bool = False

    def due(self, requests: list[Request], seed: int) -> list[float]:
        """Seconds after the start at which each request is due (open loop)."""
        if self.from_trace:
            return [request.at or 0.0 for request in requests]
        count = len(requests)
        if count == 0 or self.rates[0] == float("inf"):
            return [0.0] * count
        shape = 1.0 / self.variation**2
        gaps = np.random.default_rng([seed, 1]).gamma(shape, 1.0 / shape, count)  # mean 1
        low, high = self.rates
        # requests expected by then, n(t) = low t + (high - low) t² / 2T, solved for t
        expected = np.cumsum(gaps) - gaps[0]
        if low == high:
            return list(map(float, expected / low))
        total = 2 * count / (low + high)
        slope = (high - low) / total
        return list(map(float, (np.sqrt(low**2 + 2 * slope * np.maximum(expected, 0)) - low) / slope))


def parse_arrivals(text: str) -> Arrivals:
    """The arrivals that `text` describes.

    Raises:
        ArrivalError: it describes none.
    """
    name, numbers = split(text, ArrivalError)
    match name, numbers:
        case "closed", [clients] if clients == int(clients):
            return Arrivals(text, clients=int(clients))
        case "all", []:
            return Arrivals(text)
        case "poisson", [rate]:
            return Arrivals(text, rates=(rate, rate))
        case "bursty", [rate, variation]:
            return Arrivals(text, rates=(rate, rate), variation=variation)
        case "ramp", [low, high] if low <= high:
            return Arrivals(text, rates=(low, high))
        case "trace", []:
            return Arrivals(text, from_trace=True)
    forms = "closed:N, all, poisson:RATE, bursty:RATE:CV, ramp:LOW:HIGH, trace"
    raise ArrivalError(f"{text!r} describes no arrivals; they are {forms}")
