"""The SDKs of OpenAI and Anthropic, unmodified."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.clients.conftest import KEY, MODEL

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

pytestmark = pytest.mark.clients

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
FUNCTION = {"name": "add", "description": "Adds two numbers.", "parameters": PARAMETERS}
CHAT_TOOLS: Any = [{"type": "function", "function": FUNCTION}]
QUESTION: Any = [{"role": "user", "content": "What is 17 plus 25?"}]
ARGUMENTS = {"a": 17, "b": 25}


@pytest.fixture
def chat(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture
def claude(url: str) -> Any:
    return anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)


def test_a_round_trip_with_a_tool(chat: Any) -> None:
    messages = list(QUESTION)
    answer = chat.chat.completions.create(model=MODEL, messages=messages, tools=CHAT_TOOLS)
    message = answer.choices[0].message
    (call,) = message.tool_calls
    assert (
        json.loads(call.function.arguments) == ARGUMENTS and answer.choices[0].finish_reason == "tool_calls"
    )
    messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    answer = chat.chat.completions.create(model=MODEL, messages=messages, tools=CHAT_TOOLS)
    assert answer.choices[0].message.content == "The sum is 42."


def test_a_stream_with_a_tool(chat: Any) -> None:
    with chat.chat.completions.stream(model=MODEL, messages=QUESTION, tools=CHAT_TOOLS) as stream:
        deltas = [event.arguments_delta for event in stream if event.type.endswith("arguments.delta")]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert json.loads("".join(deltas)) == json.loads(call.function.arguments) == ARGUMENTS
    assert len(deltas) > 1 and final.choices[0].message.content == "Let me add."


def test_parse_of_text(chat: Any) -> None:
    answer = chat.chat.completions.parse(model=MODEL, messages=QUESTION)
    assert answer.choices[0].message.content == "The sum is 42."


def test_responses(chat: Any) -> None:
    tools = [{"type": "function", **FUNCTION, "strict": False}]
    answer = chat.responses.create(model=MODEL, input=QUESTION, tools=tools, store=False)
    call = next(item for item in answer.output if item.type == "function_call")
    assert json.loads(call.arguments) == ARGUMENTS
    items = [*QUESTION, *(item.model_dump(exclude_none=True) for item in answer.output)]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "42"})
    with chat.responses.stream(model=MODEL, input=items, tools=tools) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "The sum is 42."


TOOLS: Any = [{"name": "add", "description": "Adds two numbers.", "input_schema": PARAMETERS}]


def test_messages(claude: Any) -> None:
    answer = claude.messages.create(model=MODEL, max_tokens=200, messages=QUESTION, tools=TOOLS)
    assert answer.stop_reason == "tool_use"
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.input == ARGUMENTS
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "42"}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    answer = claude.messages.create(
        model=MODEL, max_tokens=200, messages=messages, tools=TOOLS, system="Add."
    )
    assert answer.content[0].text == "The sum is 42." and answer.stop_reason == "end_turn"
    counted = claude.messages.count_tokens(model=MODEL, messages=messages, tools=TOOLS, system="Add.")
    told = answer.usage
    assert counted.input_tokens == told.input_tokens + (told.cache_read_input_tokens or 0)


def test_messages_stream(claude: Any) -> None:
    with claude.messages.stream(
        model=MODEL,
        max_tokens=1200,
        messages=QUESTION,
        tools=TOOLS,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_message()
    assert {"text", "input_json", "thinking", "message_stop"} <= kinds
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    assert message.content[2].input == ARGUMENTS and message.usage.output_tokens > 10


def test_errors(claude: Any, chat: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not served"):
        claude.messages.create(model="other", max_tokens=5, messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        claude.messages.create(
            model=MODEL,
            max_tokens=5,
            messages=QUESTION,
            tools=TOOLS,
            tool_choice={"type": "tool", "name": "subtract"},
        )
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        chat.responses.create(model=MODEL, input="x", previous_response_id="resp_1")


def test_keys(stack: dict[str, str]) -> None:
    client = anthropic.Anthropic(base_url=stack["gateway"], api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        client.messages.create(model=MODEL, max_tokens=5, messages=QUESTION)


def test_models(claude: Any) -> None:
    assert [model.id for model in claude.models.list()] == [MODEL]


def test_static_batching_answers_whole(stack: dict[str, str]) -> None:
    claude = anthropic.Anthropic(base_url=stack["static"], api_key=KEY, max_retries=0)
    answer = claude.messages.create(model=MODEL, max_tokens=200, messages=QUESTION, tools=TOOLS)
    assert answer.stop_reason == "tool_use" and answer.content[-1].input == ARGUMENTS
