"""Which requests may share a call of `generate`, and which cannot be served at all."""

from __future__ import annotations

from collections.abc import Hashable

from protocol.errors import ApiError, unprocessable
from server.api.service import Job

_NO_CONCERN_OF_OTHERS = {"pad_token_id", "stop", "prompt_lookup_num_tokens", "max_matching_ngram_size"}
"""An answer holds no padding, stop strings are looked for row by row, and who wants drafts runs alone."""

_PER_ROW = {"max_new_tokens", "seed", "n", "num_return_sequences", "logprobs"}
"""Row by row as well, unless beams are searched."""

_OF_BEAMS = {"early_stopping", "length_penalty"}
_OF_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p"}


def package_key(job: Job, can_batch: bool = True) -> Hashable:
    """Jobs with equal keys can run in one package: the options that `generate` applies to all rows
    of a call alike, without those that have no effect.

    Args:
        job: the request.
        can_batch: false for a model that answers one sequence at a time: every key is its own.
    """
    config = job.config
    if not can_batch or config.prompt_lookup_num_tokens:  # transformers drafts for one sequence at a time
        return job.request_id
    irrelevant = set(_NO_CONCERN_OF_OTHERS)
    if config.num_beams == 1:
        irrelevant |= _PER_ROW | _OF_BEAMS
    elif config.do_sample:
        # transformers draws for all beams of a call from one generator: only alone is it seeded
        return job.request_id
    else:
        irrelevant |= {"seed", "n", "num_return_sequences"}
    if not config.do_sample:
        irrelevant |= _OF_SAMPLING
    return config.model_dump_json(exclude=irrelevant)


def check_options(job: Job, can_batch: bool = True, can_draft: bool = True) -> None:
    """Raise 422 for what this server cannot do.

    Args:
        job: the request.
        can_batch: as for `package_key`.
        can_draft: false for a model whose state cannot take tokens back.
    """
    config = job.config
    if config.num_rows > 1 and not can_batch:
        reason = "this model answers one sequence at a time (its batches change answers)"
        raise _refusal(job, config.rows_option, reason)
    if config.logprobs is not None and config.num_beams > 1:
        raise _refusal(job, "logprobs", "a static-batching server has none for beam search")
    if config.prompt_lookup_num_tokens:
        obstacles = {
            "this model keeps a state that cannot take tokens back": not can_draft,
            "a static-batching server drafts for greedy answers alone": config.do_sample,
            "a static-batching server has no logprobs beside drafts": config.logprobs is not None,
        }
        for obstacle, is_there in obstacles.items():
            if is_there:
                raise _refusal(job, "prompt_lookup_num_tokens", obstacle)


def _refusal(job: Job, option: str, reason: str) -> ApiError:
    field = job.field_of(option)
    return unprocessable(f"{field}: {reason}", param=field)
