"""What the device itself knows of each row, so that a step need not wait for the host.

A token that was chosen on the device is the input of the next step: it stays there, and the host
learns of it later.  `device_choice` reads what stands here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.transfer import to_device

if TYPE_CHECKING:
    from server.continuous_batching.kernels.triton_filters import Bounds
    from server.continuous_batching.kernels.triton_penalties import History

_FLOATS = ["temperature", "top_k", "top_p", "min_p", "biased", "repetition", "frequency", "presence"]
_INTEGERS = ["seed", "answer"]
_LEAST_TOP_P = 1e-30
"""Keeps the likeliest token only, as any lesser one does; float32 still knows it from 0."""


class DeviceRows:
    """Last token and sampling options by row; 0 stands for a greedy row and for a filter that is off.

    Args:
        num_rows: most sequences that run at once; row `num_rows` stands for padding.
        device: where the model is.

    Attributes:
        last_tokens: int32 [num_rows + 1], the newest token of each row's sequence.
        filters: float32 [4, num_rows + 1]: temperature, top-k, top-p, min-p.
        penalties: float32 [4, num_rows + 1]: whether there is a bias; repetition penalty, 0 for a row
            without penalties; frequency and presence penalties.
        seeds, answers: int64 [num_rows + 1].
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.device = device
        self.last_tokens = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
        self._host: list[np.ndarray] = [
            np.zeros((len(_FLOATS), num_rows + 1), np.float32),
            np.zeros((len(_INTEGERS), num_rows + 1), np.int64),
        ]
        self._options = [to_device(values, device) for values in self._host]
        self.filters, self.penalties = self._options[0][:4], self._options[0][4:]
        self.seeds, self.answers = self._options[1]
        self._tokens = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self._joined: dict[int, int] = {}

    def assign(self, row: int, params: SamplingParams, answer: int, last_token: int) -> None:
        """Row `row` is now answer number `answer` of a request, continued from `last_token`.

        Beams have no options here: the host continues them.
        """
        floats, integers = self._host
        floats[:, row] = 0.0 if params.uses_beams else _options_of(params)
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

    def sample(
        self,
        scores: Tensor,
        rows: Tensor,
        positions: Tensor,
        *,
        bounds: Bounds | None = None,
        history: History | None = None,
    ) -> Tensor:
        """Choose greedily or at random; the tokens become the rows' last ones.

        Args:
            scores: [lines, vocab].
            rows: int32 [lines].
            positions: int32 [lines], place of the token that each line of scores follows.
            bounds: what filters keep of them.
            history: is told of the tokens of rows that have penalties.

        Returns:
            int32 [lines], -1 where the scores are not finite; stands until the next call.
        """
        from server.continuous_batching.kernels.triton_sampling import sample

        tokens = self._tokens[: len(scores)]
        sample(
            scores, rows, positions, self.filters[0], self.seeds, self.answers, self.last_tokens, tokens,
            bounds=bounds, penalised=self.penalties[1], history=history,
        )  # fmt: skip
        return tokens


def _options_of(params: SamplingParams) -> tuple[float, ...]:
    """The values of `_FLOATS`."""
    filters = penalties = (0.0, 0.0, 0.0)
    if params.do_sample and params.typical_p >= 1.0:  # else they are applied together: `device_choice`
        nucleus = max(params.top_p, _LEAST_TOP_P) if params.top_p < 1.0 else 0.0
        filters = params.top_k, nucleus, params.min_p
    if params.needs_history:
        penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    temperature = params.temperature if params.do_sample else 0.0
    return temperature, *filters, bool(params.logit_bias), *penalties
