"""Bad requests get one clear line and the right status, and the service goes on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.stack import MODEL, Stack, call

ROUTES = [
    ("gateway", "/completion/v1"),
    ("gateway", "/completion/v2"),
    ("cb_server", "/completion/v2"),
    ("sb_server", "/completion/v1"),
]


def request(config: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "1 + 1 =", "generation_config": config or {}} | fields


@pytest.mark.parametrize(("service", "route"), ROUTES)
@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        (b'{"model": "demo", "prompt": ', 400, "invalid_json", "not valid JSON"),
        (b"", 400, "invalid_json", "not valid JSON"),
        (request(model="nobody"), 404, "model_not_found", "'nobody' is not served"),
        (request({"top_kk": 3}), 422, "unknown_option", "generation_config.top_kk"),
        (request(temprature=1), 422, "unknown_option", "temprature"),
        (request({"max_new_tokens": -1}), 422, "invalid_value", "max_new_tokens"),
        (request({"min_new_tokens": -1}), 422, "invalid_value", "min_new_tokens"),
        (request({"max_new_tokens": "many"}), 422, "invalid_value", "max_new_tokens"),
        (request({"max_new_tokens": 10**9}), 422, "context_length_exceeded", "and 1000000000 new ones"),
        (request(prompt=""), 422, "invalid_value", "prompt"),
        (request(prompt=[1, -1]), 422, "invalid_value", "prompt"),
        (
            request(prompt="word " * 5000),
            422,
            "context_length_exceeded",
            "maximum context length is 2048 tokens",
        ),
        ({"prompt": "no model"}, 422, "missing_field", "model"),
    ],
)
def test_it_is_named_and_the_service_goes_on(
    stack: Stack, service: str, route: str, body: Any, status: int, code: str, said: str
) -> None:
    url = getattr(stack, service)
    answer = call(url, route, body)
    assert answer.status == status, answer.text
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert "\n" not in answer.message
    assert said in answer.message
    assert answer.json["error"]["code"] == code
    assert call(url, route, request({"max_new_tokens": 1})).status == 200


@pytest.mark.parametrize("service", ["gateway", "cb_server", "sb_server"])
def test_an_unknown_route_is_a_404_in_the_same_shape(stack: Stack, service: str) -> None:
    answer = call(getattr(stack, service), "/no/such/route")
    assert answer.status == 404
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("service", ["gateway", "cb_server", "sb_server"])
def test_a_wrong_method_is_a_405(stack: Stack, service: str) -> None:
    answer = call(getattr(stack, service), "/status", {})
    assert answer.status == 405
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
