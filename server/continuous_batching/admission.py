"""Requests that the engine does not take, and why."""

from __future__ import annotations

from collections.abc import Container

from protocol.errors import ApiError
from server.continuous_batching.outputs import RequestFailure
from server.scheduling.limits import Limits
from server.scheduling.request import Request


def objection(request: Request, limits: Limits) -> RequestFailure | None:
    """Why `request` can never run, whatever its tokens, or None."""
    params = request.params
    problem = limits.objection(request.prompt_length, params.num_rows, params.max_new_tokens)
    if problem is not None:
        return RequestFailure(request.id, 422, "cannot_fit", problem[1])
    return None


def unknown_tokens(request: Request, vocab_size: int) -> RequestFailure | None:
    """The failure of a request that names tokens which the model does not have."""
    try:
        request.check(vocab_size)
    except ApiError as error:
        return RequestFailure(request.id, error.status, "invalid_value", str(error))
    return None


def refusal_for_now(
    request: Request, live: Container[str], waiting: int, limits: Limits
) -> RequestFailure | None:
    """Why `request` cannot be queued now, or None.

    Args:
        live: ids of the requests there are.
        waiting: how many of them wait.
    """
    if request.id in live:
        return RequestFailure(request.id, 422, "duplicate_id", f"request id {request.id!r} is in use")
    if not limits.has_room(waiting):
        return RequestFailure(request.id, 429, "queue_full", f"{waiting} requests are waiting already")
    return None
