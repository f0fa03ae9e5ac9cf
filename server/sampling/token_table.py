"""The tokens of every running sequence, by slot."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch

from server.device.transfer import to_device
from server.scheduling.step import SlotStart


class TokenTable:
    """Prompt and answer of each slot's sequence; what lies behind its newest token has no meaning.

    Args:
        num_slots: most sequences that run at once; slot `num_slots` stands for padding.
        max_length: tokens of the longest sequence.
        device: where the inputs of steps are put together.

    Attributes:
        tokens: int32 [num_slots + 1, max_length + 1]; the last column takes what a warm-up chooses.
    """

    def __init__(self, num_slots: int, max_length: int, device: torch.device) -> None:
        self.tokens = torch.zeros((num_slots + 1, max_length + 1), dtype=torch.int32, device=device)

    def start(self, starts: Seq[SlotStart]) -> None:
        """Write all tokens of sequences that take slots."""
        if not starts:
            return
        width = self.tokens.shape[1]
        places = [np.arange(start.slot * width, start.slot * width + len(start.tokens)) for start in starts]
        values = to_device(np.concatenate([start.tokens for start in starts]), self.tokens.device)
        index = to_device(np.concatenate(places), self.tokens.device)
        self.tokens.view(-1).index_copy_(0, index, values)

    def copy(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Copy tokens of slots `sources` to slots `targets`; no slot is in both."""
        index = to_device(np.stack((sources, targets)).astype(np.int64), self.tokens.device)
        self.tokens[index[1]] = self.tokens[index[0]]

    def record(self, slots: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> None:
        """Write tokens, integers [n], at places of sequences."""
        places = slots.astype(np.int64) * self.tokens.shape[1] + positions
        values = to_device(tokens.astype(np.int32), self.tokens.device)
        self.tokens.view(-1).index_copy_(0, to_device(places, self.tokens.device), values)
