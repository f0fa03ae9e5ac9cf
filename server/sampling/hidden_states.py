"""Hidden states that go back with a step's tokens: each, or the sum of a run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.device.transfer import to_host
from server.scheduling.step import StepInput


class StepStates:
    """On their way to the host.

    Args:
        states: [wanted, hidden], in the order of ``step.state_rows()``.
        step: what was computed.
    """

    def __init__(self, states: Tensor, step: StepInput) -> None:
        lengths = (step.state_ends - step.state_starts).tolist()
        parts = zip(torch.split(states.float(), lengths), step.state_sums.tolist(), strict=True)
        self._sent = to_host(
            torch.cat([run.sum(0, keepdim=True) if summed else run for run, summed in parts])
        )

    def read(self) -> np.ndarray:
        """float32 [lines, hidden], as `StepResult.states`, once they are there."""
        found: np.ndarray = self._sent.numpy()
        return found
