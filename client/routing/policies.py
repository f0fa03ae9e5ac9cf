"""Balancing policies: which of several servers gets a request. Pure functions, by name.

A policy is one function behind `@register`; its name is what `balancing_policy` in
``client_config.json`` says. It only weighs: it sees the servers that may be given the request, and
whether one that knows the beginning of the prompt is preferred is decided in `balancer`.
`benchmarks/gateway/balancing.py` compares all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from client.health.replica import Replica

Policy = Callable[[Sequence[Replica], float, int], Replica]
"""Chooses one of `candidates`.

Args:
    candidates: the servers to choose from, at least one, in an order that stays.
    now: the clock of their loads.
    turn: the number of this choice among those for the same model, for policies that go round or seed
        a random choice; each gateway begins with another one.
"""

POLICIES: dict[str, Policy] = {}
"""All policies by name."""


def register(policy: Policy) -> Policy:
    """Make `policy` available under its name.

    Raises:
        ValueError: another policy has this name.
    """
    name = policy.__name__
    if name in POLICIES:
        raise ValueError(f"there is a balancing policy {name!r} already")
    POLICIES[name] = policy
    return policy


@register
def least_wait(candidates: Sequence[Replica], now: float, turn: int) -> Replica:
    """The least expected wait; without a wait the smallest share of slots taken; ties go round.

    Servers with continuous batching decode many rows side by side, so it is not the amount of work
    that makes a request wait but the lack of a free slot: balancing by work alone queues requests
    behind eight short answers while a server with seven long ones has a slot to spare.
    """
    return min(candidates, key=lambda replica: cost(replica, now))


@register
def least_connections(candidates: Sequence[Replica], now: float, turn: int) -> Replica:
    """The fewest requests of this gateway; ties go round."""
    return min(candidates, key=lambda replica: (len(replica.load.leases), replica.load.picks))


@register
def least_work(candidates: Sequence[Replica], now: float, turn: int) -> Replica:
    """The fewest tokens left to generate; ties go round."""
    return min(candidates, key=lambda replica: (replica.load.expected_tokens(now), replica.load.picks))


@register
def power_of_two(candidates: Sequence[Replica], now: float, turn: int) -> Replica:
    """The less loaded of two drawn at random, by expected wait and share of slots taken.

    Where many gateways share servers, they do not all run to the one that looked best a moment ago.
    """
    return least_wait(Random(turn).sample(candidates, min(2, len(candidates))), now, turn)


@register
def round_robin(candidates: Sequence[Replica], now: float, turn: int) -> Replica:
    """One after the other, whatever their load."""
    return candidates[turn % len(candidates)]


@register
def random(candidates: Sequence[Replica], now: float, turn: int) -> Replica:
    """Any, whatever their load."""
    return Random(turn).choice(candidates)


def cost(replica: Replica, now: float) -> tuple[float, float, int]:
    """Expected wait for a slot (`Load.expected_wait`), share of the slots taken, and requests ever given."""
    load = replica.load
    rows = load.expected_rows(now)
    return load.expected_wait(now, rows), rows / load.slots, load.picks
