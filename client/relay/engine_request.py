"""What engines that are not ours are sent: the client's body, and only where it must be another one.

An engine is asked for token ids where the stream can go on elsewhere by them, and for the prefix cache of the
client's tenant where API keys identify clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import orjson

from client.engines.engine import Engine
from client.requests.request import InferenceRequest
from protocol.routes import OPENAI_COMPLETIONS

_NEVER = ("echo", "suffix", "use_beam_search")
_NEVER_GIVEN = ("logprobs", "prompt_logprobs")
"""With these no stream goes on."""
_ANYWHERE = frozenset(
    [
        *("model", "prompt", "stream", "stream_options", "max_tokens", "min_tokens", "ignore_eos", "n"),
        *("temperature", "top_k", "top_p", "min_p", "seed", "best_of", "logit_bias", "stop_token_ids"),
        *("user", "metadata", "store", "priority", "cache_salt"),
        *("skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens"),
    ]
)
"""With these alone an answer goes on from any of its tokens as it would have."""


def sent_body(request: InferenceRequest, engine: Engine, fields: Mapping[str, Any]) -> bytes:
    """The body of `request` for `engine`, with `fields` in place of its own."""
    changed = dict(fields)
    if request.cache_salt is not None and request.route in engine.salted_routes:
        changed["cache_salt"] = _salt(request.cache_salt, request.fields.get("cache_salt"))
    return orjson.dumps({**request.fields, **changed}) if changed else request.body


def _salt(tenant: str, own: Any) -> str:
    """The salt of a client that may divide its tenant's cache by one of its own."""
    if own is None:
        return tenant
    return blake2b(orjson.dumps([tenant, own]), digest_size=16).hexdigest()


def may_go_on(request: InferenceRequest, engine: Engine) -> bool:
    """Whether the stream of `request` can go on at another server: a greedy completion of one prompt."""
    fields, told = request.fields, engine.token_ids
    if told is None or not request.stream or request.route != OPENAI_COMPLETIONS:
        return False
    temperature = fields.get("temperature")
    return (
        type(temperature) in (int, float)
        and temperature == 0
        and _is_one(fields.get("prompt"))
        and fields.get("n") in (None, 1)
        and fields.get("best_of") in (None, 1)
        and all(type(fields.get(name, 0)) in (int, type(None)) for name in ("max_tokens", "min_tokens"))
        and not any(fields.get(name) for name in (*_NEVER, told.option))
        and not any(fields.get(name) is not None for name in _NEVER_GIVEN)
    )


def _is_one(prompt: Any) -> bool:
    """Whether it is one text, or one list of token ids."""
    return isinstance(prompt, str) or (isinstance(prompt, list) and bool(prompt) and type(prompt[0]) is int)


def goes_on_anywhere(fields: Mapping[str, Any]) -> bool:
    """Whether such an answer goes on from any of its tokens, and not only from its beginning."""
    return all(name in _ANYWHERE or not value or _is_short(name, value) for name, value in fields.items())


def _is_short(name: str, value: Any) -> bool:
    """Whether it is stop strings of one character: nothing is held back for them."""
    strings = [value] if isinstance(value, str) else value
    return name == "stop" and isinstance(strings, list) and all(len(str(one)) <= 1 for one in strings)
