"""Which replica gets a request: the one with the least expected work. A pure function."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from client.replicas import Replica, ReplicaState


def pick(
    replicas: Iterable[Replica],
    tried: Collection[Replica],
    now: float,
    *,
    affine: Replica | None = None,
    slack: int = 0,
) -> Replica | None:
    """The replica with the least outstanding tokens among those that may be given work.

    Args:
        replicas: all that serve the model.
        tried: those that already failed this request.
        now: the clock of their breakers and loads.
        affine: the replica that knows the beginning of the prompt.
        slack: how many tokens more than the least loaded one `affine` may have and still be taken.

    Returns:
        None if no replica can take the request. Ties go round in turn.
    """
    best: Replica | None = None
    least = 0.0
    preferred: float | None = None
    for replica in replicas:
        if replica.state is not ReplicaState.READY or replica in tried or not replica.breaker.allows(now):
            continue
        load = replica.load.expected(now)
        if replica is affine:
            preferred = load
        if best is None or load < least or (load == least and replica.load.picks < best.load.picks):
            best, least = replica, load
    if affine is not None and preferred is not None and preferred <= least + slack:
        return affine
    return best
