"""What the device itself knows of each row, so that a step need not wait for the host.

A token that was chosen on the device is the input of the next step: it stays there, and the host
learns of it later.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.transfer import to_device

_FLOATS = ["temperature", "top_k", "top_p", "min_p", "biased", "repetition", "frequency", "presence"]
_INTEGERS = ["seed", "answer"]


class DeviceRows:
    """Last token and sampling options by row; 0 stands for a greedy row and for a filter that is off.

    Args:
        num_rows: most sequences that run at once; row `num_rows` stands for padding.
        device: where the model is.

    Attributes:
        last_tokens: int32 [num_rows + 1], the newest token of each row's sequence.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.device = device
        self.last_tokens = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
        self._host: list[np.ndarray] = [
            np.zeros((len(_FLOATS), num_rows + 1), np.float32),
            np.zeros((len(_INTEGERS), num_rows + 1), np.int64),
        ]
        self._options = [to_device(values, device) for values in self._host]
        self._joined: dict[int, int] = {}

    def assign(self, row: int, params: SamplingParams, answer: int, last_token: int) -> None:
        """Row `row` is now answer number `answer` of a request, continued from `last_token`."""
        floats, integers = self._host
        filters = penalties = (0.0, 0.0, 0.0)
        if params.do_sample and params.typical_p >= 1.0:  # else they are applied together: `device_options`
            filters = params.top_k, params.top_p if params.top_p < 1.0 else 0.0, params.min_p
        if params.needs_history:
            penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        temperature = params.temperature if params.do_sample else 0.0
        floats[:, row] = temperature, *filters, bool(params.logit_bias), *penalties
        integers[:, row] = params.seed, answer
        self._joined[row] = last_token

    def flush(self) -> None:
        """Carry what was assigned to the device; before the next forward pass."""
        if self._joined:
            for options, values in zip(self._options, self._host, strict=True):
                options.copy_(to_device(values, self.device))
            rows, tokens = np.array(list(self._joined)), np.array(list(self._joined.values()))
            self._joined.clear()
            self.record(rows, tokens)

    def record(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Tokens that the host chose."""
        index = to_device(rows, self.device)
        self.last_tokens.index_copy_(0, index, to_device(tokens.astype(np.int32), self.device))

    def warm_up(self, logits: Tensor, rows: Tensor, positions: Tensor) -> None:
        """Do all of the below and what beams need, for rows without options, so that it is compiled."""
        from server.continuous_batching.kernels.triton_beams import best_continuations

        nothing = torch.zeros(16, device=self.device)  # no row without options reads the vocabulary's tables
        history = nothing.bool(), nothing
        for bias, past in ((nothing, None), (None, history), (nothing, history)):
            penalised = self.penalise(logits, rows, bias, past)
        for scores in (logits, penalised):
            self.exclude(scores, rows, top_k=True, top_p=True)
            tokens = self.sample(scores, rows, positions)
        best_continuations(logits, torch.zeros(len(logits), device=self.device), 2)
        tokens.tolist()  # what fails shall fail here

    def penalise(
        self, logits: Tensor, rows: Tensor, bias: Tensor | None, history: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Add biases and apply penalties.

        Args:
            logits: [lines, vocab].
            rows: int32 [lines].
            bias: float32 [rows, vocab], None where no line has one.
            history: (bool: tokens of prompt or answer, float32: how often the answer holds each),
                [rows, vocab] each; None where no line has penalties.

        Returns:
            float32 [lines, vocab].
        """
        from server.continuous_batching.kernels.triton_penalties import penalise

        return penalise(logits, rows, self._options[0][4:], bias, history)

    def exclude(self, logits: Tensor, rows: Tensor, *, top_k: bool, top_p: bool) -> None:
        """Set what top-k, top-p and min-p exclude to -inf, in place.

        Args:
            logits: [lines, vocab].
            rows: int32 [lines].
            top_k, top_p: whether any line has that filter.
        """
        from server.continuous_batching.kernels.triton_filters import exclude

        temperatures, top_ks, top_ps, min_ps = self._options[0][:4]
        exclude(logits, rows, temperatures, top_ks if top_k else None, top_ps if top_p else None, min_ps)

    def sample(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Choose greedily or by temperature alone; the tokens become the rows' last ones.

        Args:
            logits: [lines, vocab].
            rows: int32 [lines].
            positions: int32 [lines], place of the token that each line of logits follows.

        Returns:
            int32 [lines], -1 where the scores are not finite.
        """
        from server.continuous_batching.kernels.triton_sampling import sample

        (temperatures, *_), (seeds, answers) = self._options
        return sample(logits, rows, positions, temperatures, seeds, answers, self.last_tokens)
