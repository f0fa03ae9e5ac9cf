"""HTTP headers that the services exchange beside the body."""

import re

REQUEST_ID = "x-request-id"
"""Names a request on every hop; a server makes its response ids from it."""

SERVER_LOAD = "x-server-load"
"""Outstanding work of the answering server in tokens, an integer (see `ServerLoad.pending_tokens`)."""

SERVER_WEIGHTS = "x-server-weights"
"""Fingerprint of the weights that answer (see `ServerStatus.fingerprint`)."""

SERVER_SAMPLING = "x-server-sampling"
"""Defaults of sampling by which the answering server reads requests to ``/v1/*``, a JSON object."""

STREAM_CHECKPOINT = "x-stream-checkpoint"
"""Sent as ``1`` by a gateway that wants checkpoint comments in the stream (see `protocol.sse`)."""

CACHE_SALT = "x-cache-salt"
"""Requests reuse cached prompts of those alone with the same one, and the same `cache_salt`; a gateway
sends one for each tenant."""

HOPS = "x-gateway-hops"
"""Through how many gateways a request has come, an integer: an account may be another gateway."""

RETRY_AFTER = "retry-after"
"""Whole seconds after which a refused request may be tried again."""

SHOULD_RETRY = "x-should-retry"
"""``false``: the OpenAI SDKs shall not repeat the request, whatever the status."""

_REQUEST_ID_RULE = re.compile(rb"[!-~]{1,128}")


def parse_request_id(value: bytes) -> str:
    """The id of a request, from its `REQUEST_ID` header.

    Raises:
        ValueError: the header is not 1 to 128 visible ASCII characters.
    """
    if _REQUEST_ID_RULE.fullmatch(value) is None:
        raise ValueError(f"{REQUEST_ID} must be 1 to 128 visible ASCII characters")
    return value.decode()
