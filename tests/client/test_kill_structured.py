"""kill -9 of servers while they stream tool calls and JSON: no stream is lost, cut or different."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.client.processes import gateway
from tests.client.test_kill import REAL, Fleet, cb_server, kill_what_serves, nothing_is_held

Event = dict[str, Any]
Outcome = tuple[str, list[tuple[str, str]], str]
"""Of an answer: its text, its calls (name, arguments), and why it ended."""

SIZE = {"type": "integer", "minimum": 0, "maximum": 1000}
ITEM = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "sizes": {"type": "array", "items": SIZE, "maxItems": 3},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
LONG = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": ITEM, "minItems": 5, "maxItems": 6}},
    "required": ["items"],
    "additionalProperties": False,
}
TOKENS = 300
KILLS = 5
STRICT = {"type": "function", "name": "record", "parameters": LONG, "strict": True}


def chat(question: str, seed: int, **more: Any) -> tuple[str, Event]:
    messages = [{"role": "user", "content": question}]
    body = {"model": "m", "messages": messages, "max_tokens": TOKENS, "seed": seed, "stream": True}
    return "/v1/chat/completions", body | more


def tool(name: str, parameters: Event, **more: Any) -> Event:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


EXPRESSION = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}


def requests(count: int) -> list[tuple[str, Event]]:
    """Paths and bodies of all kinds by turns."""
    dice, found = random.Random(2), []
    for seed in range(count // 5):
        question = f"What is {dice.randint(10, 99)} plus {dice.randint(10, 99)}?"
        record = {
            "tools": [tool("record", LONG)],
            "tool_choice": {"type": "function", "function": {"name": "record"}},
        }
        form = {"type": "json_schema", "json_schema": {"name": "items", "schema": LONG}}
        found += [
            chat(question, seed, temperature=0, tools=[tool("calculator", EXPRESSION)]),
            chat(question, seed, **record),
            chat(question, seed, response_format=form),
            ("/v1/responses", {
                "model": "m", "input": question, "max_output_tokens": TOKENS, "stream": True,
                "temperature": 0, "tools": [STRICT],
                "tool_choice": "required",
            }),
            ("/v1/messages", {
                "model": "m", "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS,
                "stream": True, "temperature": 0, "tools": [{"name": "record", "input_schema": LONG}],
                "tool_choice": {"type": "any"},
            }),
        ]  # fmt: skip
    return found


def of_chat(events: list[Event]) -> Outcome:
    text, reason, calls = "", "", dict[int, list[str]]()
    for choice in (choice for event in events for choice in event["choices"]):
        text += choice["delta"].get("content") or ""
        reason = choice["finish_reason"] or reason
        for part in choice["delta"].get("tool_calls") or []:
            call = calls.setdefault(part["index"], ["", ""])
            call[0] += part["function"].get("name") or ""
            call[1] += part["function"].get("arguments") or ""
    return text, [(name, arguments) for name, arguments in calls.values()], reason


def of_responses(events: list[Event]) -> Outcome:
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    text, streamed = "", ""
    for event in events:
        text += event["delta"] if event["type"] == "response.output_text.delta" else ""
        streamed += event["delta"] if event["type"] == "response.function_call_arguments.delta" else ""
    last = events[-1]["response"]
    calls = [(item["name"], item["arguments"]) for item in last["output"] if item["type"] == "function_call"]
    assert streamed == "".join(arguments for _, arguments in calls)
    return text, calls, last["status"]


def of_messages(events: list[Event]) -> Outcome:
    text, reason, calls = "", "", dict[int, list[str]]()
    for event in events:
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            calls[event["index"]] = [event["content_block"]["name"], ""]
        elif event["type"] == "content_block_delta":
            text += event["delta"].get("text", "")
            if event["delta"]["type"] == "input_json_delta":
                calls[event["index"]][1] += event["delta"]["partial_json"]
        elif event["type"] == "message_delta":
            reason = event["delta"]["stop_reason"]
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    return text, [(name, arguments) for name, arguments in calls.values()], reason


READ = {"/v1/chat/completions": of_chat, "/v1/responses": of_responses, "/v1/messages": of_messages}


async def answer(session: aiohttp.ClientSession, path: str, body: Event) -> Outcome:
    """What the stream comes to; where it is none, what came instead, and the status."""
    async with session.post(path, json=body) as response:
        data = await response.text()
    lines = [line[6:] for line in data.split("\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    if response.status != 200 or any("error" in event and event["error"] for event in events):
        return data, [], str(response.status)
    return READ[path](events)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_kill_9_while_calls_and_json_are_streamed(tmp_path: Path) -> None:
    work, fleet = requests(60), Fleet(cb_server, tmp_path)
    with fleet.run():
        async with gateway(tmp_path, fleet.urls, patience=180, **REAL) as (_, session):
            expected = await asyncio.gather(*[answer(session, *item) for item in work])
            assert not [outcome for outcome in expected if outcome[2].isdigit()]
            assert all(text or calls for text, calls, _ in expected)
            assert sum(len(calls) for _, calls, _ in expected) > len(work) // 2
            # on a busy machine a server needs longer to load than to be killed: some have to be left in peace
            killing = asyncio.create_task(kill_what_serves(fleet, session, KILLS))
            wrong, rounds = [], 0
            while fleet.kills < KILLS:
                found = await asyncio.gather(*[answer(session, *item) for item in work])
                wrong += [pair for pair in zip(expected, found, strict=True) if pair[0] != pair[1]]
                rounds += 1
            await killing
            assert wrong == []
            async with session.get("/status") as response:
                resumed = (await response.json())["requests"]["resumed_streams"]
            assert resumed >= fleet.kills  # most of them within the arguments of a call or within JSON
            await nothing_is_held(session, (1 + rounds) * len(work))
