"""Finds the replica for a request, or waits for one, or says why there is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator

from client.affinity import Affinity
from client.balancer import pick
from client.config import Settings
from client.replicas import Registry, Replica, ReplicaState
from client.request import KINDS, InferenceRequest, beyond_static
from client.watch import ClientStalled, Watch
from protocol.errors import ApiError, model_not_found, queue_full, unavailable, unprocessable

LOOK_SECONDS = 0.25
"""How often a waiting request looks again without being told of a change (breakers run on time alone)."""


class Router:
    """Chooses among the replicas of `registry`.

    Args:
        clock: monotonic seconds.
        elsewhere: models that a request could name and that no replica serves, but an account.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        clock: Callable[[], float],
        elsewhere: Callable[[InferenceRequest], list[str]],
    ) -> None:
        self._settings = settings
        self._elsewhere = elsewhere
        self._registry = registry
        self._clock = clock
        self._affinity = Affinity()
        self._changed = asyncio.Event()
        self.waiting = 0
        """Requests that wait for a replica."""
        registry.listeners.append(self._on_change)

    def choose(self, request: InferenceRequest, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica to try next, or None if none can take the request now."""
        now = self._clock()
        affine = self._affinity.find(request.model, request.prefix) if request.prefix else None
        for kind in request.kinds:
            replica = pick(
                self._registry.serving(kind, request.model),
                tried,
                now,
                affine=affine,
                slack=self._settings.config.prefix_affinity_slack,
            )
            if replica is not None:
                if request.prefix:
                    self._affinity.record(request.model, request.prefix, replica)
                return replica
        return None

    async def wait(self, request: InferenceRequest, watch: Watch, patience: float) -> Replica:
        """The first replica that can take `request`, once there is one.

        Args:
            patience: seconds after its loss for which a replica is hoped to come back.

        Raises:
            ApiError: 404 if nobody serves the model, 503 if nobody does at the moment, 429 if too
                many requests wait already.
        """
        deadline = self._clock() + self._settings.config.max_wait_seconds
        if not self._hopeful(request, patience):
            raise self._refusal(request)
        if self.waiting >= self._settings.config.max_waiting_requests:
            raise queue_full("too many requests wait for a server of this model to come back")
        self.waiting += 1
        try:
            while True:
                if replica := self.choose(request):
                    return replica
                now = self._clock()
                if now >= deadline or not self._hopeful(request, patience):
                    raise self._refusal(request)
                watch.phase(now, float("inf"), ClientStalled)
                with watch, contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), LOOK_SECONDS)
        finally:
            self.waiting -= 1

    def serves(self, request: InferenceRequest) -> bool:
        """Whether a replica, in whatever state, serves the model of `request`."""
        return any(self._registry.serving(kind, request.model) for kind in request.kinds)

    def _hopeful(self, request: InferenceRequest, patience: float) -> bool:
        now = self._clock()
        return any(replica.may_return(now, patience) for replica in self._candidates(request))

    def _candidates(self, request: InferenceRequest) -> Iterator[Replica]:
        """Replicas of the model; without any, those that have not told yet what they serve."""
        if self.serves(request):
            for kind in request.kinds:
                yield from self._registry.serving(kind, request.model)
        else:
            yield from (r for r in self._registry if r.model_id is None and r.kind in request.kinds)

    def _refusal(self, request: InferenceRequest) -> ApiError:
        model, kinds = request.model, KINDS[request.route]
        hopeful = self._hopeful(request, self._settings.config.replica_wait_seconds)
        if not hopeful and not self.serves(request):
            if not any(self._registry.serving(kind, model) for kind in kinds):
                return model_not_found(model, self._registry.models(kinds) + self._elsewhere(request))
            if not any(self._candidates(request)):  # nor one that has not told yet what it serves
                option = beyond_static(request.fields)
                message = f"{option}: only static-batching servers serve {model!r}, which cannot do this"
                return unprocessable(message, param=option, code="unsupported")
        return unavailable(
            f"no live server for model {model!r}", code="no_replica", retry_after=1 if hopeful else 5
        )

    def _on_change(self, replica: Replica) -> None:
        if replica.state is ReplicaState.DOWN:
            self._affinity.forget(replica)
        # those who wait hold the old event
        self._changed.set()
        self._changed = asyncio.Event()
