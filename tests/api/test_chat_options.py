"""What the chat APIs refuse by name, and what they take though it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.api.app import create_app
from tests.api.chats import BODIES, answering_service, ask, refused
from tests.serving import serving

CHAT, RESPONSES, MESSAGES = BODIES


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("chats")
    with serving(create_app(answering_service(path))) as url:
        yield url


SCHEMA = {"name": "x", "schema": {"type": "object"}}
OBJECT = {"type": "json_object"}

DEEP: dict[str, Any] = {"type": "json_schema", "schema": {}}
for _ in range(70):
    DEEP["schema"] = {"items": DEEP["schema"]}

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        CHAT,
        {"response_format": {"type": "json_object", "json_schema": SCHEMA}},
        "response_format.json_schema",
    ),
    (CHAT, {"response_format": {"type": "grammar"}}, "response_format.type"),
    (CHAT, {"response_format": OBJECT, "structured_outputs": {"regex": "a"}}, "response_format"),
    (CHAT, {"response_format": OBJECT, "ignore_eos": True}, "ignore_eos"),
    (CHAT, {"tool_choice": "required", "min_tokens": 2}, "min_tokens"),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    (CHAT, {"guided_json": {}}, "guided_json"),
    (CHAT, {"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    (CHAT, {"structured_outputs": {"xml": "x"}}, "structured_outputs.xml"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}, "tools.0.function.x"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages.0.mood"),
    (CHAT, {"chat_template_kwargs": {"colour": "red"}}, "chat_template_kwargs.colour"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "tools.0.type"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    (RESPONSES, {"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input.0.content.0.type",
    ),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
    (MESSAGES, {"tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
    (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.type"),
    (MESSAGES, {"mcp_servers": []}, "mcp_servers"),
    (MESSAGES, {"temperature": 1.5}, "temperature"),
    (MESSAGES, {"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
    (MESSAGES, {"output_config": {"format": DEEP}}, "output_config.format"),
    (MESSAGES, {"output_config": {"effort": "low"}, "thinking": None}, "output_config.effort"),
    (CHAT, {"structured_outputs": {"json": '"' + "a" * 300_000 + '"'}}, "structured_outputs.json"),
    (CHAT, {"structured_outputs": {"regex": "a" * 300_000}}, "structured_outputs"),
    (CHAT, {"structured_outputs": {"json": {"enum": ["value"] * 60_000}}}, "structured_outputs"),
]


@pytest.mark.parametrize(("route", "fields", "param"), REFUSED)
async def test_what_cannot_be_done_is_refused_by_name(
    url: str, route: str, fields: dict[str, Any], param: str
) -> None:
    error = await refused(url, route, BODIES[route] | fields)
    assert error["param"] == param and param in error["message"]


CALLED: dict[str, Any] = {"name": "get_weather", "arguments": "{}", "parsed_arguments": {}}
"""As the SDK's helpers send it back."""
HISTORY = [
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": None, "parsed": None, "tool_calls": [{"id": "c", "function": CALLED}]},
    {"role": "tool", "tool_call_id": "c", "content": "sunny"},
]
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HISTORY}),
    (
        CHAT,
        dict.fromkeys(("tool_choice", "response_format", "reasoning_effort", "logprobs", "stop")),
    ),
    (CHAT, dict.fromkeys(("guided_json", "guided_regex", "structured_outputs"))),
    (CHAT, {"store": True, "metadata": {"a": "b"}, "user": "u", "reasoning_effort": "none"}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}, "skip_special_tokens": False}),
    (
        RESPONSES,
        {"store": True, "metadata": {"a": "b"}, "previous_response_id": None, "include": [], "text": {}},
    ),
    (
        RESPONSES,
        {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]},
    ),
    (MESSAGES, {"metadata": {"user_id": "u"}, "service_tier": "auto", "thinking": None, "top_k": 5}),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    (MESSAGES, {"output_config": {"effort": "low", "format": None}}),
]


@pytest.mark.parametrize(("route", "fields"), ACCEPTED)
async def test_what_changes_nothing_is_taken(url: str, route: str, fields: dict[str, Any]) -> None:
    await ask(url, route, BODIES[route] | fields)


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        (CHAT, {"messages": [1, 2]}, "messages.0"),
        (CHAT, {"structured_outputs": {"choice": ["a", 1, 2]}}, "structured_outputs.choice.1"),
        (CHAT, {f"unknown_{i}": i for i in range(100)}, "unknown_0"),
        (CHAT, {"logit_bias": dict.fromkeys(map(str, range(20_000)), "x")}, "logit_bias"),
        (CHAT, {"stop_token_ids": [-1] * 100}, "stop_token_ids.0"),
        (MESSAGES, {"messages": [{"role": "user", "content": 1}] * 3}, "messages.0.content"),
    ],
)
async def test_of_many_faults_the_first_is_told(
    url: str, route: str, fields: dict[str, Any], param: str
) -> None:
    assert (await refused(url, route, BODIES[route] | fields))["param"] == param
