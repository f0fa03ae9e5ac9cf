"""What a service refuses: told in ``/status``, and refused by the same description."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from protocol.accepts import Refusal, above, applies
from protocol.errors import ApiError, unprocessable
from server.api.service import Job


def length_refusals(max_length: int) -> tuple[Refusal, ...]:
    """Those of a model whose context holds `max_length` tokens: an answer has at least one."""
    reason = f"the model's context holds {max_length} tokens, of which the answer has at least one"
    most = above(max_length - 1)
    return (
        Refusal(option="prompt", reason=reason, when={"prompt_tokens": most}),
        Refusal(option="max_new_tokens", reason=reason, when={"max_new_tokens": most}),
    )


def check_refusals(job: Job, refusals: Iterable[Refusal]) -> None:
    """Refuse `job` where one of `refusals` applies.

    Raises:
        ApiError: 422, with the option as the request calls it.
    """

    def option_of(name: str) -> Any:
        if name == "prompt_tokens":
            return len(job.prompt_token_ids)
        return getattr(job if name in ("stream", "resume") else job.config, name, None)

    for refusal in refusals:
        if applies(refusal.rule(), option_of):
            raise fault_of(job, refusal.option, refusal.reason, "unsupported")


def fault_of(job: Job, option: str, reason: str, code: str) -> ApiError:
    """What is answered where an option of `job` is at fault: 422, with the option as the request calls it."""
    field = job.field_of(option)
    return unprocessable(f"{field}: {reason}", param=field, code=code)
