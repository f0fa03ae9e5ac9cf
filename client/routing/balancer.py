"""Which replica gets a request: filter, then policy, then prefix affinity. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

from client.health.replica import Replica, ReplicaState
from client.routing.policies import Policy, cost, least_wait

_FIRST_TURN = itertools.repeat(0)


def pick(
    replicas: Iterable[Replica],
    tried: Collection[Replica],
    now: float,
    *,
    policy: Policy = least_wait,
    turns: Iterator[int] = _FIRST_TURN,
    affine: Replica | None = None,
    slack: float = 0.0,
    heed_breakers: bool = True,
) -> Replica | None:
    """The replica that `policy` chooses among those that may be given work.

    Args:
        replicas: all that serve the model.
        tried: those that already failed this request.
        now: the clock of their breakers and loads.
        turns: numbers of choices, see `Policy`; one is taken where the policy is asked.
        affine: the replica that knows the beginning of the prompt.
        slack: how much larger a share of its slots may be taken on `affine` than on the emptiest one
            for it to be preferred, whatever the policy, as long as nothing waits there.
        heed_breakers: leave out replicas whose breaker is open.

    Returns:
        None if no replica can take the request.
    """
    candidates = available(replicas, tried, now, heed_breakers=heed_breakers)
    if not candidates:
        return None
    if affine is not None and affine in candidates and _has_room(affine, candidates, now, slack):
        return affine
    return policy(candidates, now, next(turns))


def available(
    replicas: Iterable[Replica], tried: Collection[Replica], now: float, *, heed_breakers: bool = True
) -> list[Replica]:
    """Those of `replicas` that may be given a request that `tried` failed."""
    return [
        replica
        for replica in replicas
        if replica.state is ReplicaState.READY
        and replica not in tried
        and (not heed_breakers or replica.breaker.allows(now))
    ]


def _has_room(affine: Replica, candidates: Sequence[Replica], now: float, slack: float) -> bool:
    """Whether nothing waits on `affine` and it is at most `slack` fuller than the emptiest candidate."""
    wait, share, _ = cost(affine, now)
    if wait:
        return False
    costs = [cost(replica, now) for replica in candidates]
    return share <= min([share for wait, share, _ in costs if not wait]) + slack
