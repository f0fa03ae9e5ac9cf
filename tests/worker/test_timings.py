"""What is timed on a device is known some steps later, when others took the timings so far away."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch

from server.scheduling.step import StepInput
from server.worker.runner import ModelRunner
from server.worker.worker import Worker


def test_times_that_come_late_are_not_lost() -> None:
    storage = mock.Mock(place=torch.device("cpu"))
    runner = ModelRunner(mock.Mock(), storage, mock.Mock(), mock.Mock(), mock.Mock())
    worker = Worker(runner, mock.Mock(), overlaps=True)
    worker.swap(StepInput(swap_out=np.array([[0, 1, 2]])))
    assert worker.take_timings().copies == []
    swapped = storage.swap.call_args.args[3]
    swapped(4096, 0.5)
    assert worker.take_timings().copies == [(4096, 0.5)]


def test_times_of_prompts_too() -> None:
    runner = ModelRunner(
        mock.Mock(), mock.Mock(place=torch.device("cpu")), mock.Mock(), mock.Mock(), mock.Mock()
    )
    runner._stopwatch = mock.Mock()
    worker = Worker(runner, mock.Mock(), overlaps=True)
    one, none = np.array([3], np.int32), np.array([0], np.int32)
    with mock.patch.object(runner, "_compute", return_value=torch.zeros(0, 8)):
        worker.launch(
            StepInput(chunk_slots=none, chunk_starts=none, chunk_ends=one, chunk_samples=np.zeros(1, bool))
        )
    assert worker.take_timings().prompts == []
    runner._stopwatch.stop.call_args.args[0](0.25)
    assert worker.take_timings().prompts == [(3, 0.25)]
