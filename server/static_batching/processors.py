"""What changes the scores of a package before tokens are chosen.

The order is that of transformers: bias and penalties, minimum length, temperature and filters.
Where transformers has a processor it is used; the rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor

from protocol.generation import GenerationConfig
from server.sampling.choice import choose_function
from server.scheduling.step import FAILED
from server.static_batching.grammar_mask import GrammarMask
from server.static_batching.prompts import PaddedPrompts
from server.text.grammars.compiler import Grammar
from server.text.logprob import TokenLogprob

Processor = Callable[[Tensor, Tensor], Tensor]
"""(token ids so far, [rows, tokens]; scores, [rows, vocab]) → scores."""


@dataclass(frozen=True, slots=True)
class Package:
    """What processors are made for.

    Attributes:
        config: options that all rows share (`options.package_key`).
        prompts: of the rows.
        eos_token_ids: tokens that end an answer.
        grammar: of `config.structured_outputs`.
    """

    config: GenerationConfig
    prompts: PaddedPrompts
    eos_token_ids: list[int]
    grammar: Grammar | None = None


Maker = Callable[[Package, GenerationConfig], Processor | None]
"""Makes the processor of an option for a package with these options; None where it is off."""

_OPTIONS: list[Maker] = [
    lambda p, c: LogitBias(c.logit_bias) if c.logit_bias else None,
    lambda p, c: _unpadded(p, hf.RepetitionPenaltyLogitsProcessor, c.repetition_penalty, 1.0, repeats=True),
    lambda p, c: OccurrencePenalty(c, p.prompts.width) if c.presence_penalty or c.frequency_penalty else None,
    lambda p, c: _unpadded(p, hf.NoRepeatNGramLogitsProcessor, c.no_repeat_ngram_size, 0),
    lambda p, c: _unpadded(p, hf.NoBadWordsLogitsProcessor, _bad_words(p), []),
    lambda p, c: None if c.allowed_token_ids is None else AllowedTokens(c.allowed_token_ids),
    lambda p, c: _min_new_tokens(p) if c.min_new_tokens and p.eos_token_ids else None,
    lambda p, c: None if p.grammar is None else GrammarMask(p.grammar, p.prompts, p.eos_token_ids),
]
"""A line for each option that changes scores."""

_FILTERS: list[Maker] = [
    lambda p, c: None if c.temperature == 1.0 else hf.TemperatureLogitsWarper(c.temperature),
    lambda p, c: hf.TopKLogitsWarper(c.top_k) if c.top_k else None,
    lambda p, c: hf.TopPLogitsWarper(c.top_p) if c.top_p < 1.0 else None,
    lambda p, c: hf.MinPLogitsWarper(c.min_p) if c.min_p else None,
    lambda p, c: hf.TypicalLogitsWarper(c.typical_p) if c.typical_p < 1.0 else None,
]
"""The same for tokens that are drawn here; for beams transformers' own `generate` makes them."""


def _unpadded(
    package: Package, kind: Callable[[Any], Processor], value: object, off: object, *, repeats: bool = False
) -> Processor | None:
    """A processor of transformers made for `value`, to which padding is no token."""
    return None if value == off else Unpadded(kind(value), package.prompts, repeats=repeats)


def _bad_words(package: Package) -> list[list[int]]:
    """Without single tokens that end an answer: transformers does not forbid these."""
    ends = package.eos_token_ids
    return [tokens for tokens in package.config.bad_words_ids if len(tokens) > 1 or tokens[0] not in ends]


def _min_new_tokens(package: Package) -> Processor:
    prompts, least, ends = package.prompts, package.config.min_new_tokens, package.eos_token_ids
    device = str(prompts.input_ids.device)
    made: Processor = hf.MinNewTokensLengthLogitsProcessor(prompts.width, least, ends, device=device)
    return made


def build_processors(package: Package) -> hf.LogitsProcessorList:
    """The processors of a package, in their order."""
    config = package.config
    draws = config.do_sample and config.num_beams == 1
    makers = [*_OPTIONS, *_FILTERS] if draws else _OPTIONS
    made = [processor for make in makers if (processor := make(package, config)) is not None]
    made.append(SeededChoice(package.prompts) if draws else check_finite)
    return hf.LogitsProcessorList(made)


def check_finite(input_ids: Tensor, scores: Tensor) -> Tensor:
    """`scores`, of which the likeliest token is to be taken: among nan and infinities there is none.

    Raises:
        FloatingPointError: the scores of a row are not finite.
    """
    if not scores.max(dim=-1).values.isfinite().all():
        raise FloatingPointError("scores are not finite")
    return scores


class LogitBias:
    """Adds a constant to the scores of some tokens."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self._ids = torch.tensor(list(bias.keys()))
        self._values = torch.tensor(list(bias.values()))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self._ids.to(scores.device)] += self._values.to(scores)
        return scores


class AllowedTokens:
    """Excludes all tokens but some."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._ids = torch.tensor(token_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids = self._ids.to(scores.device)
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, ids] = scores[:, ids]
        return allowed


class Unpadded:
    """One of transformers' processors, for which padding is no token.

    Args:
        repeats: the processor does not count how often a token is there: padding becomes the row's first
            token. Otherwise it becomes an id beyond the vocabulary, which a processor may compare with
            others but not look up: not all releases of transformers leave it out.
    """

    def __init__(self, processor: Processor, prompts: PaddedPrompts, *, repeats: bool = False) -> None:
        self._processor = processor
        self._prompts = prompts
        self._repeats = repeats

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        padding = self._prompts.of_rows(self._prompts.padding, input_ids).unsqueeze(1)
        is_padding = torch.arange(input_ids.shape[1], device=input_ids.device) < padding
        if self._repeats:
            unpadded = torch.where(is_padding, input_ids.gather(1, padding), input_ids)
        else:
            unpadded = input_ids.masked_fill(is_padding, scores.shape[-1])
        return self._processor(unpadded, scores)


class OccurrencePenalty:
    """OpenAI's presence and frequency penalties, for the tokens generated so far."""

    def __init__(self, config: GenerationConfig, prompt_width: int) -> None:
        self._presence = config.presence_penalty
        self._frequency = config.frequency_penalty
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids[:, self._prompt_width :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated).to(scores))
        return scores - self._frequency * counts - self._presence * (counts > 0).to(scores)


class SeededChoice:
    """Draws each row's token and leaves only that: the argmax that follows is a sample.

    The noise is a pure function of (seed, answer, position, token), so that a request is answered alike alone
    and in any package, and by the continuous-batching server (`server.sampling.random`).

    Raises (when called):
        FloatingPointError: the scores of a row are not finite.
    """

    def __init__(self, prompts: PaddedPrompts) -> None:
        self._seeds = prompts.seeds.cpu().numpy()
        self._answers = prompts.answers.cpu().numpy()
        self._padding = prompts.padding.cpu().numpy()
        self._choose, _ = choose_function(prompts.input_ids.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        undivided = np.ones(len(scores), np.float32)  # by the temperature they are divided already
        positions = input_ids.shape[1] - self._padding
        chosen = self._choose(scores.float(), undivided, self._seeds, self._answers, positions)
        if (chosen == FAILED).any():
            raise FloatingPointError("scores are not finite")
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen.unsqueeze(1), 0.0)


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
        values, ids = self._last.topk(min(self._top, scores.shape[-1]), dim=-1)
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
