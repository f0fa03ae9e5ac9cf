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


class DeviceRows:
    """Last token and plain sampling options by row.

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
            np.zeros(num_rows + 1, dtype) for dtype in (np.float32, np.int64, np.int64)
        ]
        self._temperatures, self._seeds, self._answers = (to_device(values, device) for values in self._host)
        self._joined: dict[int, int] = {}

    def assign(self, row: int, params: SamplingParams, answer: int, last_token: int) -> None:
        """Row `row` is now answer number `answer` of a request, continued from `last_token`."""
        temperatures, seeds, answers = self._host
        temperatures[row] = params.temperature if params.do_sample else 0.0
        seeds[row] = params.seed
        answers[row] = answer
        self._joined[row] = last_token

    def flush(self) -> None:
        """Carry what was assigned to the device; before the next forward pass."""
        if self._joined:
            tables = (self._temperatures, self._seeds, self._answers)
            for table, values in zip(tables, self._host, strict=True):
                table.copy_(to_device(values, self.device))
            rows, tokens = np.array(list(self._joined)), np.array(list(self._joined.values()))
            self._joined.clear()
            self.record(rows, tokens)

    def record(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Tokens that the host chose."""
        index = to_device(rows, self.device)
        self.last_tokens.index_copy_(0, index, to_device(tokens.astype(np.int32), self.device))

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

        options = (self._temperatures, self._seeds, self._answers)
        return sample(logits, rows, positions, *options, self.last_tokens)
