"""Who waits, runs or is swapped out, and every way from one to another: slots and blocks go along."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from itertools import islice

from server.scheduling.block_pool import BlockMove
from server.scheduling.cache_manager import CacheManager
from server.scheduling.policies import SchedulingPolicy
from server.scheduling.request import Phase, Request, Sequence
from server.scheduling.slots import SlotPool

_LOOKED_AT = 64
"""Requests in the queue that are looked at where it is asked for several times a step."""


@dataclass(slots=True)
class PreemptionCounters:
    """How often a running request had to leave, by what was done with its cache."""

    swapped: int = 0
    recomputed: int = 0


class Queues:
    """Live requests by phase, each queue in the policy's order.

    Args:
        cache: who holds which blocks.
        slots: places of the batch.
        policy: the order of requests.
    """

    def __init__(self, cache: CacheManager, slots: SlotPool, policy: SchedulingPolicy) -> None:
        self.cache = cache
        self.slots = slots
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.swapped: list[Request] = []
        self.preemptions = PreemptionCounters()
        self._policy = policy

    def requests(self) -> list[Request]:
        """Every live request."""
        return [*self.running, *self.swapped, *self.waiting]

    def waiting_tokens(self, most: int) -> int:
        """Tokens of prompts that could begin to be computed, up to `most`, of the first requests alone."""
        tokens = 0
        for request in islice(self.waiting, _LOOKED_AT):
            if tokens >= most:
                return most
            tokens += 0 if request.held else request.prompt_work
        return min(tokens, most)

    def backlog(self, started: list[Request], most: int) -> int:
        """Tokens of prompts still to be computed: of `started` requests, and of waiting ones up to `most`."""
        return sum(request.prompt_work for request in started) + self.waiting_tokens(most)

    def _by_order(self, request: Request) -> tuple[float, str]:
        return self._policy.order(request), request.id

    def _move(self, request: Request, phase: Phase) -> None:
        """Put `request`, which is in no queue, into that of `phase`."""
        request.phase = phase
        insort(self._queue_of(request), request, key=self._by_order)

    def _queue_of(self, request: Request) -> list[Request]:
        queues = {Phase.WAITING: self.waiting, Phase.RUNNING: self.running, Phase.SWAPPED: self.swapped}
        return queues[request.phase]

    # -- requests come and go --------------------------------------------------------------

    def add(self, request: Request) -> None:
        """Queue a request; the caller has checked that it fits in the limits."""
        self._move(request, Phase.WAITING)

    def remove(self, request: Request) -> None:
        """Remove a request in any phase, and free its blocks and slots."""
        for sequence in list(request.sequences):
            self.finish(sequence)

    def finish(self, sequence: Sequence) -> None:
        """A sequence is complete: its blocks and its slot are free at once."""
        request = sequence.request
        self.cache.free(sequence)
        self._release_slot(sequence)
        sequence.pending = 0
        request.sequences.remove(sequence)
        if not request.sequences:
            self._queue_of(request).remove(request)
            self._release_slots(request)
            request.phase = Phase.FINISHED

    # -- entering the batch ------------------------------------------------------------------

    def next_candidate(self) -> Request | None:
        """The first of all that could run and do not."""
        swapped = next((request for request in self.swapped if not request.held), None)
        waiting = next((request for request in self.waiting if not request.held), None)
        if swapped is None or waiting is None:
            return swapped or waiting
        return min(swapped, waiting, key=self._by_order)

    def enter(self, request: Request) -> None:
        """Let a waiting or swapped request run, with a slot for each of its sequences to be."""
        self._queue_of(request).remove(request)
        request.spare_slots = self.slots.take(request.width)
        for sequence in request.sequences:
            sequence.slot = request.spare_slots.pop()
        self._move(request, Phase.RUNNING)

    def adopt(self, parent: Sequence, child: Sequence) -> None:
        """Let `child`, a fork of `parent`, run: it shares the blocks and takes a spare slot."""
        request = parent.request
        self.cache.share(parent, child)
        child.slot = request.spare_slots.pop()
        request.sequences.append(child)

    def continue_with(self, beam: Sequence, parent: Sequence) -> None:
        """Drop the tokens of `beam`: it becomes a second `parent`, in its own slot."""
        beam.follow(parent)
        self.cache.share(parent, beam)

    # -- leaving the batch -------------------------------------------------------------------

    def swap_out(self, request: Request) -> list[BlockMove]:
        """Preempt a running request to the host pools; returns the copies to make."""
        self.running.remove(request)
        copies = self.cache.swap_out(request)
        self._move(request, Phase.SWAPPED)
        self._release_slots(request)
        self.preemptions.swapped += 1
        return copies

    def drop(self, request: Request) -> None:
        """Preempt a running request without keeping its cache: it waits to be computed again."""
        self.recompute(request)
        self.preemptions.recomputed += 1

    def recompute(self, request: Request) -> None:
        """Compute a running request again: what the cache holds of it is not valid."""
        self.running.remove(request)
        for sequence in request.sequences:
            self.cache.free(sequence)
        request.restart()
        self._move(request, Phase.WAITING)
        self._release_slots(request)

    def _release_slot(self, sequence: Sequence) -> None:
        if sequence.slot >= 0:
            self.slots.release([sequence.slot])
            sequence.slot = -1

    def _release_slots(self, request: Request) -> None:
        for sequence in request.sequences:
            self._release_slot(sequence)
        self.slots.release(request.spare_slots)
        request.spare_slots = []

    # -- health ----------------------------------------------------------------------------

    def check(self) -> None:
        """Verify that blocks and slots are owned exactly once.

        Raises:
            CacheIntegrityError: blocks do not add up.
            RuntimeError: slots do not add up.
        """
        requests = self.requests()
        self.cache.check(requests)
        held = [s.slot for request in requests for s in request.sequences if s.slot >= 0]
        self.slots.check([*held, *(slot for request in requests for slot in request.spare_slots)])
