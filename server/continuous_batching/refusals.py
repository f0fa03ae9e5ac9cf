"""What a continuous-batching server refuses, whatever else runs."""

from __future__ import annotations

from protocol.accepts import Refusal, above
from server.api.refusals import length_refusals
from server.scheduling.limits import Limits

_ROWS = ("num_beams", "n", "num_return_sequences")


def refusals(limits: Limits) -> tuple[Refusal, ...]:
    """What can never fit `limits`, as far as single options tell; `Limits.objection` sees whole requests."""
    reason = f"at most {limits.max_rows} sequences run side by side (batch_max_beams)"
    too_many = above(limits.max_rows)
    rows = [Refusal(option=option, reason=reason, when={option: too_many}) for option in _ROWS]
    return (*rows, *length_refusals(limits.model_max_length))
