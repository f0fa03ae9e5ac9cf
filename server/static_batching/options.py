"""Which requests may share a call of `generate`, and which cannot be served at all."""

from __future__ import annotations

from collections.abc import Hashable

from protocol.accepts import GIVEN, TRUE, Condition, Refusal, above
from server.api.refusals import length_refusals
from server.api.service import Job

_NO_CONCERN_OF_OTHERS = {
    "pad_token_id", "stop", "prompt_lookup_num_tokens", "max_matching_ngram_size", "prompt_logprobs",
}  # fmt: skip
"""An answer holds no padding, stop strings are looked for row by row, who wants drafts runs alone, and
prompts are scored one by one."""

_PER_ROW = {"max_new_tokens", "seed", "n", "num_return_sequences", "logprobs"}
"""Row by row as well, unless beams are searched."""

_OF_BEAMS = {"early_stopping", "length_penalty"}
FORM = "structured_outputs"
_DRAFTS = "prompt_lookup_num_tokens"
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


def refusals(max_length: int, can_batch: bool = True, can_draft: bool = True) -> tuple[Refusal, ...]:
    """What this server cannot do.

    Args:
        max_length: tokens that the model's context holds.
        can_batch: as for `package_key`.
        can_draft: false for a model whose state cannot take tokens back.
    """
    drafts, logprobs = {"prompt_lookup_num_tokens": above(0)}, {"logprobs": GIVEN}
    rules: list[tuple[str, dict[str, Condition], str]] = [
        ("stream", {"stream": TRUE}, "a static-batching server answers whole"),
        ("resume", {"resume": GIVEN}, "a static-batching server has no streams"),
        ("logprobs", logprobs | {"num_beams": above(1)}, "a static-batching server has none for beam search"),
        (_DRAFTS, drafts | {"do_sample": TRUE}, "a static-batching server drafts for greedy answers alone"),
        (FORM, {FORM: GIVEN, "num_beams": above(1)}, "transformers keeps beams that no token may follow"),
        (_DRAFTS, drafts | logprobs, "a static-batching server has no logprobs beside drafts"),
    ]
    if not can_draft:
        rules.append((_DRAFTS, drafts, "this model keeps a state that cannot take tokens back"))
    if not can_batch:
        reason = "this model answers one sequence at a time (its batches change answers)"
        rules += [
            (option, {option: above(1)}, reason) for option in ("num_beams", "n", "num_return_sequences")
        ]
    refusals = [Refusal(option=option, when=when, reason=reason) for option, when, reason in rules]
    return (*refusals, *length_refusals(max_length))
