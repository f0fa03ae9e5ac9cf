"""Which replica gets a request: the one on which it waits least. A pure function.

Servers with continuous batching decode many rows side by side, so it is not the amount of work
that makes a request wait but the lack of a free slot: balancing by work alone queues requests
behind eight short answers while a server with seven long ones has a slot to spare. The expected
wait (`Load.expected_wait`) counts both; `benchmarks/gateway/balancing.py` compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from client.replicas import Replica, ReplicaState


def pick(
    replicas: Iterable[Replica],
    tried: Collection[Replica],
    now: float,
    *,
    affine: Replica | None = None,
    slack: float = 0.0,
) -> Replica | None:
    """The replica with the least expected wait among those that may be given work.

    Among those without a wait it is the one with the smallest share of its slots taken; ties go
    round in turn.

    Args:
        replicas: all that serve the model.
        tried: those that already failed this request.
        now: the clock of their breakers and loads.
        affine: the replica that knows the beginning of the prompt.
        slack: how much larger a share of its slots may be taken on `affine` than on the best one,
            for it to be preferred as long as nothing waits there.

    Returns:
        None if no replica can take the request.
    """
    best: Replica | None = None
    best_cost = (0.0, 0.0, 0)
    affine_cost: tuple[float, float, int] | None = None
    for replica in replicas:
        if replica.state is not ReplicaState.READY or replica in tried or not replica.breaker.allows(now):
            continue
        load = replica.load
        rows = load.expected_rows(now)
        cost = (load.expected_wait(now, rows), rows / load.slots, load.picks)
        if best is None or cost < best_cost:
            best, best_cost = replica, cost
        if replica is affine:
            affine_cost = cost
    if affine_cost is not None and affine_cost[0] == 0.0 and affine_cost[1] <= best_cost[1] + slack:
        return affine
    return best
