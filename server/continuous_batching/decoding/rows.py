"""The decoding options of every running sequence, one table row each.

Options are written when a sequence enters the batch and read by index every step, so that a step
builds nothing per request. Tables over the vocabulary exist only once a request needs them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from server.continuous_batching.decoding.device_rows import DeviceRows
from server.continuous_batching.decoding.params import SamplingParams
from server.continuous_batching.transfer import to_device

_FLOATS = [
    "temperature", "top_p", "min_p", "typical_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty",
]  # fmt: skip
_INTEGERS = ["top_k", "seed", "min_new_tokens"]

NO_TOKEN = -1
"""Fills a row's list of tokens that end its answer."""


class RowTable:
    """Options and token statistics by row.

    Args:
        num_rows: most sequences that run at once.
        vocab_size: columns of the logits.
        device: where the logits are.
        device_rows: where tokens stay on the device from step to step, else None.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        device_rows: DeviceRows | None = None,
    ) -> None:
        self.device = device
        self.device_rows = device_rows
        self.shape = (num_rows, vocab_size)
        self.floats = {name: np.zeros(num_rows, np.float64) for name in _FLOATS}
        self.integers = {name: np.zeros(num_rows, np.int64) for name in _INTEGERS}
        self.answer = np.zeros(num_rows, np.int64)
        self.eos_count = np.zeros(num_rows, np.int64)
        self.eos = np.full((num_rows, 1), NO_TOKEN)
        self.samples = np.zeros(num_rows, bool)
        self.beams = np.zeros(num_rows, bool)
        self.biased = np.zeros(num_rows, bool)
        self.penalised = np.zeros(num_rows, bool)
        self.filtered = np.zeros(num_rows, bool)
        self.plain = np.zeros(num_rows, bool)
        self.logprobs = np.full(num_rows, -1, np.int64)
        self._seen: Tensor | None = None
        self._counts: Tensor | None = None
        self._bias: Tensor | None = None

    # -- tables over the vocabulary, made on first use -----------------------------------------

    @property
    def seen(self) -> Tensor:
        """bool [rows, vocab]: tokens of the prompt or the answer."""
        if self._seen is None:
            self._seen = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        return self._seen

    @property
    def counts(self) -> Tensor:
        """float32 [rows, vocab]: how often the answer holds each token."""
        if self._counts is None:
            self._counts = torch.zeros(self.shape, dtype=torch.float32, device=self.device)
        return self._counts

    @property
    def bias(self) -> Tensor:
        """float32 [rows, vocab]: what is added to the logits."""
        if self._bias is None:
            self._bias = torch.zeros(self.shape, dtype=torch.float32, device=self.device)
        return self._bias

    # -- rows come and change --------------------------------------------------------------

    def assign(
        self, row: int, params: SamplingParams, answer: int, prompt: Seq[int], generated: Seq[int]
    ) -> None:
        """Take row `row` for answer number `answer`, which begins with `prompt` and `generated`."""
        for name, floats in self.floats.items():
            floats[row] = getattr(params, name)
        for name, integers in self.integers.items():
            integers[row] = getattr(params, name)
        self.answer[row] = answer
        self._assign_eos(row, params.eos_token_ids)
        self.samples[row] = params.do_sample and not params.uses_beams
        self.beams[row] = params.uses_beams
        self.logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.filtered[row] = params.is_filtered
        self.plain[row] = params.is_plain
        if self.device_rows is not None:
            self.device_rows.assign(row, params, answer, [*prompt[-1:], *generated[-1:]][-1])
        self.penalised[row] = params.needs_history
        if params.needs_history:
            self.seen[row] = False
            self.seen[row, self.on_device(np.array([*prompt, *generated], np.int64))] = True
            counts = np.bincount(np.array(generated, np.int64), minlength=self.shape[1])
            self.counts[row] = self.on_device(counts.astype(np.float32))
        self.biased[row] = bool(params.logit_bias)
        if params.logit_bias:
            self.bias[row] = 0.0
            ids = np.array(list(params.logit_bias), np.int64)
            values = np.array(list(params.logit_bias.values()), np.float32)
            self.bias[row, self.on_device(ids)] = self.on_device(values)

    def _assign_eos(self, row: int, ids: tuple[int, ...]) -> None:
        if len(ids) > self.eos.shape[1]:
            missing = len(ids) - self.eos.shape[1]
            self.eos = np.pad(self.eos, ((0, 0), (0, missing)), constant_values=NO_TOKEN)
        self.eos[row] = NO_TOKEN
        self.eos[row, : len(ids)] = ids
        self.eos_count[row] = len(ids)

    def is_eos(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """bool [rows, k]: which of `tokens` [rows, k] end an answer of their row."""
        ends: np.ndarray = (tokens[:, :, None] == self.eos[rows][:, None, :]).any(axis=2)
        return ends

    def copy(self, sources: Seq[int], targets: Seq[int]) -> None:
        """Rows `targets` continue what rows `sources` hold (beams that split)."""
        if self._seen is not None:
            self._seen[list(targets)] = self._seen[list(sources)]
        if self._counts is not None:
            self._counts[list(targets)] = self._counts[list(sources)]

    def record(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """Rows got one more token each time they occur, chosen by the host."""
        if rows.size and self.device_rows is not None:
            self.device_rows.record(rows, tokens)
        chosen = np.flatnonzero(self.penalised[rows])
        if chosen.size:
            index, token = self.on_device(rows[chosen]), self.on_device(tokens[chosen])
            self.seen[index, token] = True
            # a row may be there several times, with tokens that were drafted
            self.counts.index_put_((index, token), torch.ones(1, device=self.device), accumulate=True)

    def on_device(self, values: np.ndarray) -> Tensor:
        """`values` beside the logits, without waiting for what is computed there."""
        return to_device(values, self.device)

    def column(self, values: np.ndarray, rows: np.ndarray) -> Tensor:
        """`values` of these rows as a tensor [rows, 1] beside the logits (floats in float32)."""
        chosen = values[rows]
        if chosen.dtype == np.float64:
            chosen = chosen.astype(np.float32)
        return self.on_device(chosen).unsqueeze(1)
