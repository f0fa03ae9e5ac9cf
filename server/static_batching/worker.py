"""Runs packages, one after the other, on a thread of its own."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence

import torch

from protocol.errors import ApiError, internal, unprocessable
from protocol.generation import GenerationConfig
from server.device.faults import is_of_the_machine, out_of_memory
from server.static_batching.generate import Batch, generate
from server.static_batching.model import LoadedModel
from server.static_batching.options import FORM
from server.static_batching.problems import BrokenModelError
from server.static_batching.prompts import Prompt
from server.text.grammars.source import GrammarError
from utils.messages import one_line

logger = logging.getLogger(__name__)

Deliver = Callable[[slice, Batch | ApiError], None]
"""Called with a part of a package and what became of it."""


class Worker:
    """Calls `generate` for a package in parts of `batch_size` prompts (-1: in one).

    A part that fails is run again prompt by prompt, to find out whose fault it was: that request
    alone fails. So is one that is too large for the memory: each of its prompts may fit alone.

    After some errors of a device no call succeeds any more (CUDA calls them sticky), and only a new process
    helps: after each failure a prompt of one token shows whether the model still runs.
    """

    def __init__(self, model: LoadedModel, batch_size: int) -> None:
        self._model = model
        self._batch_size = batch_size

    def run(self, prompts: Sequence[Prompt], deliver: Deliver) -> None:
        """Answer `prompts`, a package, delivering each part as soon as it is done.

        Raises:
            BrokenModelError: the model does not run any more; the rest is not delivered.
        """
        size = len(prompts) if self._batch_size == -1 else self._batch_size
        for start in range(0, len(prompts), size):
            self._run(prompts, slice(start, min(start + size, len(prompts))), deliver)

    def _run(self, prompts: Sequence[Prompt], part: slice, deliver: Deliver) -> None:
        outcome = self._answer(prompts[part])
        if isinstance(outcome, Batch) or part.stop - part.start == 1:
            deliver(part, outcome)
        else:
            for i in range(part.start, part.stop):
                self._run(prompts, slice(i, i + 1), deliver)

    def _answer(self, prompts: Sequence[Prompt]) -> Batch | ApiError:
        """What became of `prompts`: answers, or what went wrong with one of them, or with all."""
        began = time.perf_counter()
        try:
            batch = generate(self._model, prompts)
        except Exception as error:
            if out_of_memory(error):
                logger.error("out of memory with %d prompts: %s", len(prompts), one_line(error))
            elif not isinstance(error, GrammarError):
                logger.exception("a package of %d prompts failed", len(prompts))
            failure = _failure(error)
        else:
            seconds = time.perf_counter() - began
            logger.debug(
                "%d rows, %d steps, %d padding, %.2f s", batch.rows, batch.steps, batch.padding, seconds
            )
            return batch
        # not in a handler, whose traceback holds the tensors of the failed pass
        return failure if self._recovers() else internal("the machine has no memory left")

    def _recovers(self) -> bool:
        """Free what a failed pass held, and try the model; False: there is no memory for a single token.

        Raises:
            BrokenModelError: it does not run any more.
        """
        try:
            gc.collect()
            torch.cuda.empty_cache()
            generate(self._model, [Prompt([0], GenerationConfig(max_new_tokens=1))])
        except Exception as error:
            if not out_of_memory(error):
                raise BrokenModelError(f"the model does not run any more: {one_line(error)}") from error
            logger.error("out of memory with a prompt of one token: %s", one_line(error))
            return False
        return True


def _failure(error: Exception) -> ApiError:
    """What a request is answered that failed alone with `error`."""
    if isinstance(error, GrammarError):
        return unprocessable(str(error), param=FORM, code="invalid_grammar")
    if isinstance(error, FloatingPointError):
        message = (
            "no token can be chosen: the model's scores for this request are not finite, "
            "or its options exclude every token"
        )
        return unprocessable(message, code="generation_failed")
    if out_of_memory(error):
        return unprocessable("this request alone needs more memory than is free", code="cannot_fit")
    if is_of_the_machine(error):
        return internal("this request failed; the server's log says why")
    return unprocessable("this request failed; the server's log says why", code="generation_failed")
