"""What stands around the answers of a request."""

from __future__ import annotations

import time

from fastapi import Request

from protocol.openai import SharedRequest
from server.api.jobs import Call
from server.api.shapes import Envelope

FINGERPRINT_CHARACTERS = 16


def created_at(call: Call) -> int:
    """When the answer was begun, by whichever server: seconds since 1970."""
    return int(time.time()) if call.resume is None else call.resume.created


def envelope(request: Request, body: SharedRequest, call: Call, fingerprint: str | None) -> Envelope:
    """That of the answer to `request` by the weights with this fingerprint."""
    return Envelope(
        request_id=request.state.request_id,
        created=created_at(call),
        model=body.model,
        stream_options=body.stream_options,
        fingerprint=None if fingerprint is None else f"fp_{fingerprint[:FINGERPRINT_CHARACTERS]}",
    )
