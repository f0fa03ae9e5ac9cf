"""Tools and reasoning through the unmodified SDK, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from protocol.messages import MessageAnswer
from protocol.openai_answers import ChatCompletionResponse
from protocol.responses_answers import ResponsesAnswer
from server.api.app import create_app
from tests.api.chats import (
    ANSWER,
    ARGUMENTS,
    BODIES,
    CHAT_TOOL,
    QUESTION,
    answering_service,
    ask,
    read_stream,
    refused,
)
from tests.api.fake import FakeService
from tests.serving import serving

CHAT, RESPONSES, MESSAGES = BODIES
USER: Any = [{"role": "user", "content": QUESTION}]
TOOLS: Any = BODIES[CHAT]["tools"]
RESPONSE_TOOLS: Any = BODIES[RESPONSES]["tools"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> FakeService:
    path: Path = tmp_path_factory.mktemp("chats")
    return answering_service(path)


@pytest.fixture(scope="module")
def url(service: FakeService) -> Iterator[str]:
    with serving(create_app(service)) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_calls_tools(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.chat.completions.create(model="fake", messages=USER, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert choice.message.reasoning_content == "The user asks."  # type: ignore[attr-defined]
    first, second = choice.message.tool_calls or ()
    assert first.type == "function" and second.type == "function" and first.id != second.id
    assert (first.function.name, json.loads(first.function.arguments)) == ("get_weather", ARGUMENTS)
    assert second.function.arguments == "{}"
    prompt = service.tokenizer.hf.decode(service.jobs[-1].prompt_token_ids)
    assert json.dumps(CHAT_TOOL["description"]) in prompt


def test_chat_streams_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=USER, tools=TOOLS) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    calls = final.choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == [ARGUMENTS, {}]
    assert final.choices[0].finish_reason == "tool_calls"


def test_one_call_where_one_is_wanted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake", messages=USER, tools=TOOLS, parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls or ()) == 1
    answer = client.chat.completions.create(
        model="fake",
        messages=USER,
        tools=TOOLS,
        parallel_tool_calls=False,
        max_tokens=answer.usage.completion_tokens - 3,  # type: ignore[union-attr]
    )
    assert answer.choices[0].finish_reason == "tool_calls"  # what the limit cut was left out anyway


def test_no_tools_no_calls(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.chat.completions.create(model="fake", messages=USER, tools=TOOLS, tool_choice="none")
    message = answer.choices[0].message
    assert message.tool_calls is None and "<tool_call>" in (message.content or "")
    assert "Tools" not in service.tokenizer.hf.decode(service.jobs[-1].prompt_token_ids)


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="fake", input=QUESTION, tools=RESPONSE_TOOLS, instructions="Hm.")
    reasoning, message, first, second = answer.output
    assert reasoning.type == "reasoning" and (reasoning.content or ())[0].text == "The user asks."
    assert message.type == "message" and answer.output_text == "Let me see."
    assert first.type == "function_call" and json.loads(first.arguments) == ARGUMENTS
    assert second.type == "function_call" and second.call_id != first.call_id
    assert answer.status == "completed" and answer.instructions == "Hm."
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens > 0


def test_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input=QUESTION, tools=RESPONSE_TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.completed",
    ]
    assert final.output_text == "Let me see." and len(final.output) == 4


def test_a_response_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="fake", input=QUESTION, max_output_tokens=20)
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_messages(url: str) -> None:
    answer = await ask(url, MESSAGES, BODIES[MESSAGES])
    thinking, text, first, second = answer["content"]
    assert (thinking["type"], thinking["thinking"], text["text"]) == (
        "thinking",
        "The user asks.",
        "Let me see.",
    )
    assert first["input"] == ARGUMENTS and second["input"] == {} and first["id"].startswith("toolu_")
    assert answer["stop_reason"] == "tool_use" and answer["usage"]["output_tokens"] > 10


async def test_messages_stream(url: str) -> None:
    stream = (await read_stream(url, MESSAGES, BODIES[MESSAGES])).decode()
    names = [line.removeprefix("event: ") for line in stream.splitlines() if line.startswith("event: ")]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    assert names.count("content_block_start") == names.count("content_block_stop") == 4
    assert "input_json_delta" in stream and "DONE" not in stream


async def test_the_form_of_a_message_is_a_grammar(url: str, service: FakeService) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}}
    form = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
    await ask(url, MESSAGES, BODIES[MESSAGES] | form)
    asked = service.jobs[-1].config.structured_outputs
    assert asked is not None and "%json" in asked.grammar and '"days"' in asked.grammar


async def test_messages_end_at_stop_sequences(url: str) -> None:
    answer = await ask(url, MESSAGES, {**BODIES[MESSAGES], "stop_sequences": ["me see", "nowhere"]})
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "me see")
    assert answer["content"][-1]["text"] == "Let "
    answer = await ask(url, MESSAGES, {**BODIES[MESSAGES], "max_tokens": 10})
    assert answer["stop_reason"] == "max_tokens"


async def test_tokens_are_counted(url: str, service: FakeService) -> None:
    body = {name: value for name, value in BODIES[MESSAGES].items() if name not in ("max_tokens", "seed")}
    counted = await ask(url, "/v1/messages/count_tokens", body)
    answer = await ask(url, MESSAGES, BODIES[MESSAGES])
    assert counted == {"input_tokens": answer["usage"]["input_tokens"]}


async def test_a_billing_header_leaves_the_prompt_alone(url: str, service: FakeService) -> None:
    prompts = []
    for cch in ("1", "2"):
        system = [
            {"type": "text", "text": f"x-anthropic-billing-header: cch={cch};"},
            {"type": "text", "text": "Be."},
        ]
        await ask(url, MESSAGES, {**BODIES[MESSAGES], "system": system})
        prompts.append(service.jobs[-1].prompt_token_ids)
    assert prompts[0] == prompts[1]


async def test_errors_on_messages_are_anthropics(url: str) -> None:
    body = {**BODIES[MESSAGES], "model": "other"}
    async with aiohttp.ClientSession(url) as http, http.post(MESSAGES, json=body) as response:
        answer = await response.json()
    assert response.status == 404 and answer["type"] == "error"
    assert answer["error"]["type"] == "not_found_error" and "other" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("route", "model"),
    [(CHAT, ChatCompletionResponse), (RESPONSES, ResponsesAnswer), (MESSAGES, MessageAnswer)],
)
async def test_answers_are_as_documented(url: str, route: str, model: Any) -> None:
    model.model_validate(await ask(url, route, BODIES[route]), extra="forbid")


async def test_status_names_the_format(url: str) -> None:
    async with aiohttp.ClientSession(url) as http, http.get("/status") as response:
        chosen = (await response.json())["capabilities"]["chat_format"]
    assert chosen["name"] == "hermes" and "<tool_call>" in chosen["reason"]


async def test_the_model_has_other_names(
    url: str, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "model_aliases", ("gpt-x", "claude/y"))
    assert (await ask(url, CHAT, {**BODIES[CHAT], "model": "claude/y"}))["model"] == "claude/y"
    async with aiohttp.ClientSession(url) as http, http.get("/v1/models") as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["fake", "gpt-x", "claude/y"]


async def test_text_and_tokens(url: str, service: FakeService) -> None:
    encode = service.tokenizer.encode
    assert await ask(url, "/tokenize", {"prompt": "Hello"}) == {
        "count": len(encode("Hello")),
        "max_model_len": 4096,
        "tokens": encode("Hello"),
        "token_strs": None,
    }
    bare = await ask(
        url,
        "/tokenize",
        {"model": "fake", "prompt": "Hello", "add_special_tokens": False, "return_token_strs": True},
    )
    assert bare["tokens"] == encode("Hello", special=False) and "".join(bare["token_strs"]) == "Hello"
    chat = await ask(url, "/tokenize", {"messages": USER, "tools": TOOLS})
    await ask(url, CHAT, BODIES[CHAT])
    assert chat["tokens"] == service.jobs[-1].prompt_token_ids
    text = await ask(url, "/detokenize", {"tokens": chat["tokens"]})
    assert text["prompt"].startswith("<|im_start|>system") and QUESTION in text["prompt"]
    error = await refused(url, "/detokenize", {"tokens": [10**6]}, 422)
    assert error["param"] == "tokens"
    error = await refused(url, "/tokenize", {"prompt": "x", "messages": USER}, 422)
    assert error["param"] == "prompt"


async def test_echo_alone(url: str, service: FakeService) -> None:
    jobs = len(service.jobs)
    body = {"model": "fake", "prompt": ["Hello", "You"], "max_tokens": 0, "echo": True}
    answer = await ask(url, "/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == ["Hello", "You"]
    assert answer["usage"]["completion_tokens"] == 0 and len(service.jobs) == jobs
    stream = await read_stream(url, "/v1/completions", body)
    assert stream.count(b'"finish_reason":"length"') == 2 and stream.endswith(b"data: [DONE]\n\n")


async def test_special_tokens_are_shown_where_they_are_wanted(tmp_path: Path) -> None:
    service = answering_service(tmp_path, answer="Hi<|im_end|>")
    with serving(create_app(service)) as url:
        body = {"model": "fake", "prompt": "x", "temperature": 0}
        hidden = await ask(url, "/v1/completions", body)
        shown = await ask(url, "/v1/completions", {**body, "skip_special_tokens": False})
    assert (hidden["choices"][0]["text"], shown["choices"][0]["text"]) == ("Hi", "Hi<|im_end|>")


async def test_tools_need_a_template_that_takes_them(tmp_path: Path, service: FakeService) -> None:
    plain = answering_service(tmp_path)
    plain.tokenizer.hf.chat_template = "{{ messages[0].content }}"
    with serving(create_app(plain)) as url:
        error = await refused(url, CHAT, BODIES[CHAT])
        assert error["param"] == "tools" and "template takes no tools" in error["message"]
        answer = await ask(url, CHAT, {"model": "fake", "messages": USER})
    assert answer["choices"][0]["message"]["content"] == ANSWER
