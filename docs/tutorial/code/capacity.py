"""Chapter 12: how many GPUs a traffic needs, what a million tokens cost, and what waiting has to do with it.

.venv/bin/python -m docs.tutorial.code.capacity
"""

from __future__ import annotations

from docs.tutorial.code.common import table
from docs.tutorial.code.cost import SHAPES
from tools.size import MACHINES, Machine

SHAPE = SHAPES["8b"]
PROMPT, ANSWER = 1000, 300
"""Tokens of a request, on average."""
PRICES = {"L4": 0.70, "A100-80": 1.80, "H100": 2.50, "H200": 3.50}
"""Dollars an hour for one GPU: put your own here."""
PEAKS = {"L4": 100e12, "A100-80": 260e12, "H100": 770e12, "H200": 770e12}
"""Products in bfloat16, flop/s: what is reached, about, rather than what is advertised."""


def step(rows: int, machine: Machine, peak: float) -> float:
    """Seconds of a step: `rows` decodes, bound by memory, and then their share of prompts, by arithmetic."""
    prompts = rows * PROMPT // ANSWER  # so that as many requests come as go
    context = PROMPT + ANSWER // 2
    moved = SHAPE.traffic(rows + prompts, rows * context)
    return moved / (0.9 * machine.bandwidth) + SHAPE.flops(prompts, context) / peak


def rows_that_fit(machine: Machine) -> int:
    """Requests whose cache fits beside the weights, at most 256."""
    weights = (SHAPE.weights + SHAPE.vocab * SHAPE.hidden) * SHAPE.bytes
    free = (machine.memory - machine.taken - weights) * machine.share
    return min(256, int(free / ((PROMPT + ANSWER) * SHAPE.cache_bytes)))


def waits(servers: int, slots: int, utilisation: float) -> float:
    """Mean wait for a slot, in lengths of a request: Poisson arrivals, exponential lengths (Erlang, 1917)."""
    count = servers * slots
    offered, blocked = utilisation * count, 1.0
    for n in range(1, count + 1):
        blocked = offered * blocked / (n + offered * blocked)  # if there were n slots and no queue
    queued = blocked / (1 - utilisation * (1 - blocked))
    return queued / (count * (1 - utilisation))


def main(argv: list[str] | None = None) -> None:
    rows = []
    for name, price in PRICES.items():
        n = rows_that_fit(MACHINES[name])
        seconds = step(n, MACHINES[name], PEAKS[name])
        cost = price / 3600 / (n / seconds) * 1e6
        rate = f"{n / seconds:,.0f}", f"{n / seconds / ANSWER:.1f}"
        rows.append([name, n, f"{seconds * 1e3:.0f}", *rate, f"{cost:.2f}"])
    table(["GPU", "rows", "ms a step", "tokens/s", "requests/s", "$ a million tokens"], rows)
    rows = [
        [f"{load:.0%}", *(f"{waits(servers, 8, load):.3f}" for servers in (1, 4, 16))]
        for load in (0.7, 0.8, 0.9, 0.95)
    ]
    table(["utilisation", "wait, 1 server", "4 servers", "16 servers"], rows)


if __name__ == "__main__":
    main()
