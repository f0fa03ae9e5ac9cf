"""One device at work: block copies, forward pass and choice of tokens, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from server.sampling.chosen import ChosenTokens, PendingTokens
from server.sampling.decoder import Decoder
from server.sampling.step_logits import StepLogits
from server.scheduling.step import SampleInput, StepInput, Timings
from server.worker.runner import ModelRunner


class Worker:
    """Does steps; knows slots and blocks, and nothing of requests.

    Args:
        runner: computes.
        decoder: chooses tokens.
        overlaps: whether tokens stay on the device, so that a step can be launched before the tokens of the
            one before are read.
    """

    def __init__(self, runner: ModelRunner, decoder: Decoder, *, overlaps: bool) -> None:
        self.runner = runner
        self.decoder = decoder
        self.overlaps = overlaps
        self._step = StepInput()
        self._logits: StepLogits | None = None

    @property
    def vocab_size(self) -> int:
        """Columns of the logits: token ids at or above it do not exist."""
        return self.decoder.vocab_size

    @property
    def chunks_like_decodes(self) -> bool:
        """Whether a token has the same bits computed in a chunk as computed as a decode."""
        return self.runner.attention.chunks_like_decodes

    def swap(self, step: StepInput) -> None:
        """Start the swaps of a step: before its copies and its forward pass, and once a step."""
        self.runner.swap(step)

    def copy(self, step: StepInput) -> None:
        """Start the copies of a step: after its swaps, before its forward pass."""
        self.runner.copy(step)

    def computes_numbers(self, length: int) -> bool:
        """Whether the logits behind `length` tokens, which fit in a block, are finite; before any step."""
        with torch.inference_mode():
            return bool(torch.isfinite(self.runner.try_out(length)).all())

    def check_device(self) -> None:
        """Raise if the device can compute no more."""
        self.runner.check_device()

    def launch(self, step: StepInput) -> None:
        """Start the forward pass of a step.

        A step whose launch failed may be launched again, whole or in parts, if all its slots are started
        anew.
        """
        self._step, self._logits = step, None
        with torch.inference_mode():
            self.decoder.state.prepare(step)
            if step.has_tokens:
                self._logits = self.runner.forward(step)

    def sample(self, sample: SampleInput) -> ChosenTokens | PendingTokens:
        """Start the choice of the tokens of the step that was launched last; its `read` waits for them."""
        assert self._logits is not None
        with torch.inference_mode():
            return self.decoder.choose(self._logits, self._step, sample)

    @property
    def layer_inputs(self) -> Tensor | None:
        """What a draft head reads of the step that was launched last (`StepLogits.layer_inputs`)."""
        return None if self._logits is None else self._logits.layer_inputs

    def take_timings(self) -> Timings:
        """What was timed since the last call."""
        timings, self.runner.timings = self.runner.timings, Timings()
        return timings
