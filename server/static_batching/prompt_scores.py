"""Log probabilities of a prompt's tokens, by forward passes beside those of `generate`."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from server.static_batching.model import LoadedModel
from server.static_batching.prompts import Prompt
from server.text.logprob import TokenLogprob

_SCORES = 1 << 25
"""Scores that are there at once: a long prompt is computed several times, with the scores of a part each."""


def prompt_logprobs(model: LoadedModel, prompt: Prompt) -> list[TokenLogprob] | None:
    """Those of the prompt's tokens from the second on; None where they are not wanted.

    Raises:
        FloatingPointError: the model's scores are not finite.
    """
    if prompt.config.prompt_logprobs is None:
        return None
    ids, top = prompt.token_ids, prompt.config.prompt_logprobs
    found: list[TokenLogprob] = []
    size = max(1, _SCORES // model.vocab_size)
    for begin in range(0, len(ids) - 1, size):
        end = min(begin + size, len(ids) - 1)
        found += _score(_logits(model, ids, begin, end), ids[begin + 1 : end + 1], top)
    return found


def _logits(model: LoadedModel, ids: list[int], begin: int, end: int) -> Tensor:
    """[end - begin, vocab], behind the tokens of these places."""
    tokens = torch.tensor([ids[:end]], device=model.device)
    options = {}
    if "logits_to_keep" in inspect.signature(model.hf.forward).parameters:
        options["logits_to_keep"] = end - begin
    logits: Tensor = model.hf(tokens, use_cache=False, **options).logits
    return logits[0, begin - end :]


def _score(logits: Tensor, chosen: list[int], top: int) -> list[TokenLogprob]:
    logs = logits.float().log_softmax(dim=-1)
    own = logs.gather(1, torch.tensor(chosen, device=logs.device).unsqueeze(1))
    if not own.isfinite().all():
        raise FloatingPointError("scores are not finite")
    ranks = (logs > own).sum(dim=1) + 1
    best = logs.topk(min(top, logs.shape[1]), dim=-1)
    columns = zip(
        chosen, own[:, 0].tolist(), best.indices.tolist(), best.values.tolist(), ranks.tolist(), strict=True
    )
    return [
        TokenLogprob(token, logprob, list(zip(tokens, values, strict=True)), rank)
        for token, logprob, tokens, values, rank in columns
    ]
