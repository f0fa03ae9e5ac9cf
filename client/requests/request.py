"""What the gateway reads from a request body; all the rest is for the server to judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from client.requests.options import option_of
from client.requests.prefix import prefix_keys
from client.requests.size import read_size
from protocol.errors import bad_request, unprocessable
from protocol.routes import (
    ANTHROPIC_COUNT_TOKENS,
    ANTHROPIC_MESSAGES,
    CHAT_COMPLETION_V1,
    COMPLETION_V1,
    COMPLETION_V2,
    DETOKENIZE,
    OPENAI_CHAT_COMPLETIONS,
    OPENAI_COMPLETIONS,
    OPENAI_RESPONSES,
    TOKENIZE,
)
from protocol.work import expected_tokens

GENERATING = frozenset(
    [
        *(COMPLETION_V1, COMPLETION_V2, OPENAI_COMPLETIONS, OPENAI_CHAT_COMPLETIONS, CHAT_COMPLETION_V1),
        *(OPENAI_RESPONSES, ANTHROPIC_MESSAGES),
    ]
)
"""Routes that generate tokens, and say in their answers how many."""
RELAYED = GENERATING | {ANTHROPIC_COUNT_TOKENS, TOKENIZE, DETOKENIZE}
"""Routes whose requests are answered by a server or, `CHAT_COMPLETION_V1` always, by an OpenAI account."""


@dataclass(slots=True, eq=False)
class InferenceRequest:
    """A request to be routed."""

    id: str
    route: str
    body: bytes
    """As the client sent it."""
    fields: dict[str, Any]
    """`body`, parsed."""
    model: str
    stream: bool
    choices: int
    """Answers that the response will hold."""
    rows: int
    """Sequences decoded side by side for them."""
    work: int
    """Expected work in tokens."""
    prefix: list[int]
    """Keys of the prompt's beginning, see `prefix`."""
    cache_salt: str | None = None
    """Sent to servers as `protocol.headers.CACHE_SALT`."""
    hops: int = 0
    """Gateways that it has come through."""

    def option(self, name: str) -> Any:
        """The value of an option, by the names of `protocol.accepts`."""
        return option_of(self.route, self.fields, name)

    @property
    def has_prompt_logprobs(self) -> bool:
        """Whether an event may be as long as the prompt: it has the prompt's log probabilities."""
        return bool(self.fields.get("echo")) or self.option("prompt_logprobs") is not None

    def resumed_option(self, name: str) -> Any:
        """The same of the request that continues its stream."""
        return True if name == "resume" else self.option(name)


def read_request(
    id: str, route: str, body: bytes, *, hops: int = 0, cache_salt: str | None = None
) -> InferenceRequest:
    """Parse `body` just as far as routing needs.

    Args:
        hops: gateways that it has come through.
        cache_salt: sent to servers.

    Raises:
        ApiError: 400 if it is not a JSON object, 422 if the model is not named.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise unprocessable("the body must be a JSON object", code="invalid_value")
    model = fields.get("model")
    if not isinstance(model, str):
        if model is None:
            raise unprocessable("'model' is required", param="model", code="missing_field")
        raise unprocessable("model: Input should be a valid string", param="model")
    size = read_size(route, fields)
    rows, new_tokens = (size.rows, size.new_tokens) if route in GENERATING else (0, 0)
    return InferenceRequest(
        id=id,
        route=route,
        body=body,
        fields=fields,
        model=model,
        stream=fields.get("stream") is True,
        choices=size.choices,
        rows=rows,
        work=max(1, expected_tokens(size.prompt_tokens, rows, new_tokens)),
        prefix=prefix_keys(size.prompt, (cache_salt, str(fields.get("cache_salt")))),
        cache_salt=cache_salt,
        hops=hops,
    )
