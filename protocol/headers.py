"""HTTP headers that the services exchange beside the body."""

REQUEST_ID = "x-request-id"
"""Names a request on every hop; a server makes its response ids from it."""

SERVER_LOAD = "x-server-load"
"""Outstanding work of the answering server in tokens, an integer (see `ServerLoad.pending_tokens`)."""

STREAM_CHECKPOINT = "x-stream-checkpoint"
"""Sent as ``1`` by a gateway that wants checkpoint comments in the stream (see `protocol.sse`)."""

RETRY_AFTER = "retry-after"
"""Whole seconds after which a refused request may be tried again."""
