"""Runs packages, one after the other, on a thread of its own."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence

import torch

from protocol.errors import ApiError, internal
from server.static_batching.generate import Batch, generate
from server.static_batching.model import LoadedModel
from server.static_batching.problems import one_line
from server.static_batching.prompts import Prompt

logger = logging.getLogger(__name__)

Deliver = Callable[[slice, Batch | ApiError], None]
"""Called with a part of a package and what became of it."""


class Worker:
    """Calls `generate` for a package in parts of `batch_size` prompts (-1: in one).

    A part that fails is run again prompt by prompt, to find out whose fault it was: that request
    alone fails. One that is too large for the memory fails whole; the next part runs all the same.
    """

    def __init__(self, model: LoadedModel, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size

    def run(self, prompts: Sequence[Prompt], deliver: Deliver) -> None:
        """Answer `prompts`, a package, delivering each part as soon as it is done."""
        size = len(prompts) if self._batch_size == -1 else self._batch_size
        for start in range(0, len(prompts), size):
            self._run(prompts, slice(start, min(start + size, len(prompts))), deliver)

    def _run(self, prompts: Sequence[Prompt], part: slice, deliver: Deliver) -> None:
        outcome = self._answer(prompts[part])
        if outcome is not None:
            deliver(part, outcome)
        elif part.stop - part.start == 1:
            deliver(part, internal("this request failed; the server's log says why"))
        else:
            for i in range(part.start, part.stop):
                self._run(prompts, slice(i, i + 1), deliver)

    def _answer(self, prompts: Sequence[Prompt]) -> Batch | ApiError | None:
        """What became of `prompts`; None: something went wrong with one of them, or with all."""
        began = time.perf_counter()
        try:
            batch = generate(self._model, prompts)
        except torch.OutOfMemoryError as error:
            logger.error("out of memory with %d prompts: %s", len(prompts), one_line(error))
            gc.collect()  # what the failed pass held
            torch.cuda.empty_cache()
            return internal("the package that held this request ran out of memory")
        except Exception:
            logger.exception("a package of %d prompts failed", len(prompts))
            return None
        seconds = time.perf_counter() - began
        logger.debug("%d rows, %d steps, %d padding, %.2f s", batch.rows, batch.steps, batch.padding, seconds)
        return batch
