"""What changes the scores of a package before tokens are chosen.

The order is that of transformers: bias and penalties, minimum length, temperature and filters.
Where transformers has a processor it is used; the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from protocol.generation import GenerationConfig
from server.random import uniform
from server.static_batching.prompts import PaddedPrompts
from server.text.logprob import TokenLogprob


def build_processors(
    config: GenerationConfig, prompts: PaddedPrompts, eos_token_ids: list[int]
) -> LogitsProcessorList:
    """The processors of a package whose rows share `config` (`options.package_key`)."""
    processors = LogitsProcessorList()
    device = prompts.input_ids.device
    if config.logit_bias:
        processors.append(LogitBias(config.logit_bias))
    if config.repetition_penalty != 1.0:
        processors.append(UnpaddedRepetitionPenalty(config.repetition_penalty, prompts))
    if config.presence_penalty or config.frequency_penalty:
        penalty = OccurrencePenalty(config.presence_penalty, config.frequency_penalty, prompts.width)
        processors.append(penalty)
    if config.min_new_tokens and eos_token_ids:
        processors.append(
            MinNewTokensLengthLogitsProcessor(
                prompts.width, config.min_new_tokens, eos_token_ids, device=str(device)
            )
        )
    if config.do_sample and config.num_beams == 1:
        processors.extend(_filters(config))
        processors.append(SeededChoice(prompts))
    return processors


Processor = Callable[[Tensor, Tensor], Tensor]
"""(token ids so far, [rows, tokens]; scores, [rows, vocab]) → scores."""


def _filters(config: GenerationConfig) -> list[Processor]:
    filters: list[Processor] = []
    if config.temperature != 1.0:
        filters.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        filters.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        filters.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        filters.append(MinPLogitsWarper(config.min_p))
    if config.typical_p < 1.0:
        filters.append(TypicalLogitsWarper(config.typical_p))
    return filters


class LogitBias:
    """Adds a constant to the scores of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = torch.tensor(list(bias.keys()))
        self._values = torch.tensor(list(bias.values()))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self._ids.to(scores.device)] += self._values.to(scores)
        return scores


class UnpaddedRepetitionPenalty:
    """Repetition penalty (Keskar et al., 2019) that does not take padding for a token seen."""

    def __init__(self, penalty: float, prompts: PaddedPrompts) -> None:
        self._penalty: Processor = RepetitionPenaltyLogitsProcessor(penalty)
        self._prompts = prompts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        padding = self._prompts.of_rows(self._prompts.padding, input_ids).unsqueeze(1)
        is_padding = torch.arange(input_ids.shape[1], device=input_ids.device) < padding
        # the first real token stands in: it was seen anyway
        seen = torch.where(is_padding, input_ids.gather(1, padding), input_ids)
        return self._penalty(seen, scores)


class OccurrencePenalty:
    """OpenAI's presence and frequency penalties, for the tokens generated so far."""

    def __init__(self, presence: float, frequency: float, prompt_width: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids[:, self._prompt_width :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated).to(scores))
        return scores - self._frequency * counts - self._presence * (counts > 0).to(scores)


class SeededChoice:
    """Draws each row's token and leaves only that: the argmax that follows is a sample.

    The draw is inverse-CDF sampling with a number that is a pure function of (seed, answer,
    position), so that a request is answered alike alone and in any package.

    Raises (when called):
        FloatingPointError: the scores of a row are not finite.
    """

    def __init__(self, prompts: PaddedPrompts) -> None:
        self._prompts = prompts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        positions = input_ids.shape[1] - self._prompts.padding
        numbers = uniform(self._prompts.seeds, self._prompts.answers, positions).unsqueeze(1)
        cumulative = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        # strictly above the target: a token of probability zero adds nothing and is never hit
        chosen = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        if (chosen == scores.shape[1]).any():  # in a sum that is not finite nothing is above
            raise FloatingPointError("scores are not finite")
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)


class LogprobRecorder:
    """Records the model's own log probabilities, before anything changes the scores.

    Goes first in the list. The token chosen at a step is known at the next one.

    Args:
        top: how many of the likeliest tokens to record besides the chosen one.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._last: Tensor | None = None
        self._chosen: list[Tensor] = []
        self._best: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._record(input_ids)
        self._last = scores.log_softmax(dim=-1)
        values, ids = self._last.topk(self._top, dim=-1)
        self._best.append((values.cpu(), ids.cpu()))
        return scores

    def _record(self, input_ids: Tensor) -> None:
        if self._last is not None:
            self._chosen.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1).cpu())

    def finish(self, sequences: Tensor) -> None:
        """Record the last step; `sequences` are the final ones, [rows, prompt + new]."""
        self._record(sequences)
        self._last = None

    def of_row(self, row: int, token_ids: list[int], top: int) -> list[TokenLogprob]:
        """The records of the tokens of one row, with the `top` likeliest of each place."""
        return [
            TokenLogprob(
                token_id,
                float(self._chosen[step][row]),
                list(
                    zip(
                        self._best[step][1][row, :top].tolist(),
                        self._best[step][0][row, :top].tolist(),
                        strict=True,
                    )
                ),
            )
            for step, token_id in enumerate(token_ids)
        ]
