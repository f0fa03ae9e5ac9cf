"""Authorization: fields and headers that not every client may set."""

from __future__ import annotations

from typing import Any

from client.http.keys import Caller
from protocol.errors import bad_request, forbidden, unprocessable
from protocol.headers import HOPS, STREAM_CHECKPOINT

MAX_HOPS_DIGITS = 4


def check_fields(fields: dict[str, Any], caller: Caller) -> None:
    """Check the fields of a request that not every client may set.

    Raises:
        ApiError: 422 for a field that a gateway sends to its servers, 403 for a priority that is
            too high for the client.
    """
    if fields.get("resume") is not None:
        message = "resume: only a gateway sends it, to its servers"
        raise unprocessable(message, param="resume", code="unknown_option")
    priority = fields.get("priority")
    if isinstance(priority, int | float) and priority > caller.max_priority:
        message = (
            f"priority: at most {caller.max_priority} for this client (got {priority}); "
            "'max_priority' in the gateway's configuration allows more"
        )
        raise forbidden(message, param="priority", code="priority_not_allowed")


def check_headers(checkpoint: bytes | None, hops: bytes | None) -> int:
    """Check the headers that gateways and servers exchange.

    Args:
        checkpoint: value of `STREAM_CHECKPOINT`, which goes to servers only.
        hops: value of `HOPS`, which a gateway sends to an account that may be another gateway.

    Returns:
        The gateways that the request has come through.

    Raises:
        ApiError: 400.
    """
    if checkpoint is not None:
        raise bad_request(f"{STREAM_CHECKPOINT}: only a gateway sends it, to its servers")
    if hops is None:
        return 0
    if not hops.isdigit() or len(hops) > MAX_HOPS_DIGITS:
        raise bad_request(f"{HOPS} must be a small whole number")
    return int(hops)
