"""Finds the replica for a request, or waits for one, or says why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from client.health.replica import Replica, ReplicaState
from client.health.replicas import Registry
from client.health.report import ReplicaKind
from client.requests.deadline import ClientStalled, Deadline
from client.requests.request import InferenceRequest
from client.routing.affinity import Affinity
from client.routing.balancer import pick
from client.routing.config import RoutingConfig
from client.routing.policies import POLICIES
from protocol.errors import ApiError, model_elsewhere, model_not_found, queue_full, unavailable

RANKS: tuple[tuple[ReplicaKind, ...], ...] = (
    ("continuous_batching", "openai_compatible"),
    ("static_batching",),
)
"""In this order servers are asked that take the same request; kinds of one rank share it."""
LOOK_SECONDS = 0.25
"""How often a waiting request looks again without notice of a change (breakers run on time alone)."""


NO_REPLICA = "no_replica"
"""Code of the error where a model's servers are known and none is alive."""

Fits = Callable[[Replica], bool]
"""Whether a server that takes a request can do so as it stands now, e.g. go on with its stream."""


def fits_any(replica: Replica) -> bool:
    """Before the first byte of the answer any server will do."""
    return True


class Router:
    """Chooses among the replicas of `registry`.

    Args:
        config: the one in use; a reload may put another in its place.
        clock: monotonic seconds.
        elsewhere: models that a request could name and that no replica serves, but an account.
    """

    def __init__(
        self,
        registry: Registry,
        config: Callable[[], RoutingConfig],
        clock: Callable[[], float],
        elsewhere: Callable[[InferenceRequest], list[str]],
    ) -> None:
        self._config = config
        self._elsewhere = elsewhere
        self._registry = registry
        self._clock = clock
        self._affinity = Affinity()
        # random beginnings: gateways that go round or draw lots do not move in step
        self._turns: defaultdict[str, Iterator[int]] = defaultdict(
            lambda: itertools.count(random.randrange(2**32))
        )
        self._changed = asyncio.Event()
        self.waiting = 0
        """Requests that wait for a replica."""
        registry.listeners.append(self._on_change)

    def next_replica(
        self, request: InferenceRequest, tried: Collection[Replica] = (), fits: Fits = fits_any
    ) -> Replica | None:
        """The replica to try next, or None if none can take the request now."""
        now = self._clock()
        affine = self._affinity.find(request.model, request.prefix) if request.prefix else None
        candidates = self._candidates(request, fits)
        for replicas in candidates:
            replica = self._pick(replicas, request, tried, now, affine=affine)
            if replica is not None:
                if request.prefix:
                    self._affinity.record(request.model, request.prefix, replica)
                return replica
        return self._last_resort(itertools.chain(*candidates), request, tried, now)

    def _pick(
        self,
        replicas: Sequence[Replica],
        request: InferenceRequest,
        tried: Collection[Replica],
        now: float,
        *,
        affine: Replica | None = None,
        heed_breakers: bool = True,
    ) -> Replica | None:
        if not replicas:  # names of models that no server has leave nothing in `_turns`
            return None
        config = self._config()
        return pick(
            replicas,
            tried,
            now,
            policy=POLICIES[config.balancing_policy],
            turns=self._turns[request.model],
            affine=affine,
            slack=config.prefix_affinity_slack,
            heed_breakers=heed_breakers,
        )

    def _last_resort(
        self,
        candidates: Iterable[Replica],
        request: InferenceRequest,
        tried: Collection[Replica],
        now: float,
    ) -> Replica | None:
        """A replica with an open breaker, where no other is left: a breaker spares the others' time, and
        without others there is none to spare. Each gets no more than it has slots for, so that a server
        that hangs does not gather all requests."""
        ready = [replica for replica in candidates if replica.state is ReplicaState.READY]
        if any(replica.breaker.allows(now) for replica in ready):
            return None
        with_room = [replica for replica in ready if replica.load.rows < replica.load.slots]
        return self._pick(with_room, request, tried, now, heed_breakers=False)

    async def wait(
        self, request: InferenceRequest, deadline: Deadline, patience: float, fits: Fits = fits_any
    ) -> Replica:
        """The first replica that can take `request`, once there is one.

        Args:
            patience: seconds after its loss for which a replica is hoped to come back.
            fits: as for `next_replica`.

        Raises:
            ApiError: 404 if no server has the model, 503 if none does at the moment, 429 if too
                many requests wait already.
        """
        give_up_at = self._clock() + self._config().max_wait_seconds
        if not self._hopeful(request, patience, fits):
            raise self._refusal(request, fits)
        if self.waiting >= self._config().max_waiting_requests:
            raise queue_full("too many requests wait for a server of this model to come back")
        self.waiting += 1
        try:
            while True:
                if replica := self.next_replica(request, fits=fits):
                    return replica
                now = self._clock()
                if now >= give_up_at or not self._hopeful(request, patience, fits):
                    raise self._refusal(request, fits)
                deadline.phase(now, float("inf"), ClientStalled)
                with deadline, contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), LOOK_SECONDS)
        finally:
            self.waiting -= 1

    def serves(self, request: InferenceRequest) -> bool:
        """Whether a replica, in whatever state, takes `request`."""
        return any(True for _ in self._taking(request))

    def ready(self, request: InferenceRequest) -> bool:
        """Whether one does that is ready, or was a moment ago and is being asked whether it still is."""
        ready = (ReplicaState.READY, ReplicaState.SUSPECT)
        return any(replica.state in ready for replica in self._taking(request))

    def _taking(self, request: InferenceRequest) -> Iterator[Replica]:
        serving = self._serving(request)
        return (r for r in serving if r.terms.take(request.route, request.option))

    def _serving(self, request: InferenceRequest) -> list[Replica]:
        """Replicas that have the model of `request` on its route, in whatever state."""
        return [
            replica for replica in self._with_model(request.model) if request.route in replica.terms.routes
        ]

    def _with_model(self, model: str) -> list[Replica]:
        """The same on whatever route."""
        kinds = itertools.chain(*RANKS)
        return [replica for kind in kinds for replica in self._registry.serving(kind, model)]

    def _takers(self, request: InferenceRequest, fits: Fits) -> list[list[Replica]]:
        """The replicas that take `request`, in whatever state; those of one of the `RANKS` together.

        Where all have the same terms they are not asked: one that refuses says why.
        """
        takers: list[list[Replica]] = []
        terms = self._registry.sole_terms(request.model)
        take = terms is not None and request.route in terms.routes
        for kinds in RANKS:
            found: list[Replica] = []
            for kind in kinds:
                for replica in self._registry.serving(kind, request.model):
                    if replica.terms is not terms:
                        terms = replica.terms
                        take = terms.take(request.route, request.option)
                    if take and fits(replica):
                        found.append(replica)
            if found:
                takers.append(found)
        return takers

    def _candidates(self, request: InferenceRequest, fits: Fits) -> Sequence[Sequence[Replica]]:
        """Replicas that take `request`, in whatever state and by kind; without any, those that have not yet
        reported what they serve; without such, those that refuse it and say why."""
        if takers := self._takers(request, fits):
            return takers
        unidentified = [r for r in self._registry if r.model_id is None and request.route in r.terms.routes]
        return [unidentified or [replica for replica in self._serving(request) if fits(replica)]]

    def _hopeful(self, request: InferenceRequest, patience: float, fits: Fits) -> bool:
        now = self._clock()
        return any(r.may_return(now, patience) for r in itertools.chain(*self._candidates(request, fits)))

    def _refusal(self, request: InferenceRequest, fits: Fits) -> ApiError:
        model, serving = request.model, self._serving(request)
        hopeful = self._hopeful(request, self._config().replica_wait_seconds, fits)
        if not hopeful and not serving:
            if elsewhere := self._with_model(model):
                raise _not_on_route(request, elsewhere[0])
            served = self._registry.models(lambda replica: request.route in replica.terms.routes)
            return model_not_found(model, served + self._elsewhere(request))
        if serving and not any(map(fits, serving)):
            message = "the stream was cut, and no server with the same weights can go on with it"
            return unavailable(message, code="upstream_failed")
        return unavailable(
            f"no live server for model {model!r}", code=NO_REPLICA, retry_after=1 if hopeful else 5
        )

    def _on_change(self, replica: Replica) -> None:
        if replica.state is ReplicaState.DOWN or replica not in self._registry:
            self._affinity.forget(replica)
        # those who wait hold the old event
        self._changed.set()
        self._changed = asyncio.Event()


def _not_on_route(request: InferenceRequest, replica: Replica) -> ApiError:
    """404: `replica` has the model, and not the route."""
    by = replica.engine.name if replica.engine else f"a {replica.kind.replace('_', '-')} server"
    routes = ", ".join(sorted(replica.terms.routes))
    return model_elsewhere(request.model, f"{by}, which has {routes}, not {request.route}")
