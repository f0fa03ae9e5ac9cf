"""Rank 0 as the engine sees it: a worker that has the others do the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from server.continuous_batching.ranks import messages
from server.continuous_batching.ranks.leader import Ranks
from server.sampling.chosen import ChosenTokens, PendingTokens
from server.scheduling.step import SampleInput, StepInput
from server.worker.worker import Worker

Result = TypeVar("Result")


class RankedWorker(Worker):
    """Sends each step to all ranks and does its own part.

    Every rank chooses the tokens for itself: the logits that it chooses from are the gathered ones, the same
    to the bit on all of them, and so are seeds and options. No token is sent, so that steps overlap and are
    replayed as graphs as those of one rank are. What only the host needs (beams, reports) is read on rank 0.

    Args:
        own: of rank 0.
        ranks: the others.
    """

    def __init__(self, own: Worker, ranks: Ranks) -> None:
        super().__init__(own.runner, own.decoder, overlaps=own.overlaps)
        self._ranks = ranks
        self._swapping = False

    def swap(self, step: StepInput) -> None:
        swaps = bool(len(step.swap_out) or len(step.swap_in))
        told = swaps or self._swapping  # what was swapped last must be waited for
        if told:
            self._ranks.send(messages.encode_call("swap", step))
        self._swapping = swaps
        self._together(lambda: super(RankedWorker, self).swap(step), told=told)

    def copy(self, step: StepInput) -> None:
        told = len(step.copies) > 0
        if told:
            self._ranks.send(messages.encode_call("copy", step))
        self._together(lambda: super(RankedWorker, self).copy(step), told=told)

    def launch(self, step: StepInput) -> None:
        self._ranks.send(messages.encode_call("launch", step))
        self._together(lambda: super(RankedWorker, self).launch(step))

    def sample(self, sample: SampleInput) -> ChosenTokens | PendingTokens:
        self._ranks.send(messages.encode_sample(sample))
        return self._together(lambda: super(RankedWorker, self).sample(sample))

    def _together(self, act: Callable[[], Result], *, told: bool = True) -> Result:
        """What a request caused fails on every rank alike; whatever else fails, the ranks are out of step."""
        try:
            return act()
        except Exception:
            if told:
                self._ranks.check_failed_alike()
            raise
        except BaseException:  # Ctrl-C: nobody knows how far it came
            self._ranks.give_up("rank 0 was interrupted within a step")
            raise

    def check_device(self) -> None:
        self._ranks.check()
        super().check_device()
