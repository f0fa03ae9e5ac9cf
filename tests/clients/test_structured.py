"""Clients that ask for an answer of a given form."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, create_model

from tests.clients.conftest import KEY, MODEL

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.clients

QUESTION = "What is 17 plus 25?"
ARGUMENTS = {"a": 17, "b": 25}
# so narrow that any model that is held to it writes the same
Sum: type[BaseModel] = create_model("add", a=(Literal[17], ...), b=(Literal[25], ...))


@pytest.fixture
def chat(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def by_instructor(chat: Any, mode: str) -> dict[str, Any]:
    instructor = pytest.importorskip("instructor")
    client = instructor.from_openai(chat, mode=instructor.Mode[mode])
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        response_model=Sum,
        max_retries=0,
        max_tokens=200,
    )
    answer: dict[str, Any] = found.model_dump()
    return answer


def test_instructor_reads_text(chat: Any) -> None:
    assert by_instructor(chat, "MD_JSON") == ARGUMENTS


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA"])
def test_instructor(chat: Any, mode: str) -> None:
    assert by_instructor(chat, mode) == ARGUMENTS


def test_outlines_with_text(chat: Any) -> None:
    outlines = pytest.importorskip("outlines")
    assert outlines.from_openai(chat, MODEL)(QUESTION) == "The sum is 42."


def test_outlines(chat: Any) -> None:
    outlines = pytest.importorskip("outlines")
    text = outlines.from_openai(chat, MODEL)(QUESTION, Sum, max_tokens=200)
    assert Sum.model_validate_json(text).model_dump() == ARGUMENTS


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_langchain(url: str, method: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    structured = model.with_structured_output(Sum, method=method)
    assert structured.invoke(f"{QUESTION} Answer in JSON.").model_dump() == ARGUMENTS


def test_litellm(url: str) -> None:
    litellm = pytest.importorskip("litellm")
    answer = litellm.completion(
        f"openai/{MODEL}",
        [{"role": "user", "content": QUESTION}],
        api_base=f"{url}/v1",
        api_key=KEY,
        response_format=Sum,
        num_retries=0,
    )
    assert Sum.model_validate_json(answer.choices[0].message.content).model_dump() == ARGUMENTS


async def test_pydantic_ai(url: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))
    for output in (ai.ToolOutput(Sum), ai.NativeOutput(Sum)):
        answer = await ai.Agent(model, output_type=output).run(QUESTION)
        assert answer.output.model_dump() == ARGUMENTS


def test_openai_parses(chat: Any) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    asked = {"model": MODEL, "messages": messages, "response_format": Sum, "max_tokens": 200}
    parsed = chat.chat.completions.parse(**asked).choices[0].message.parsed
    assert parsed.model_dump() == ARGUMENTS
    with chat.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.parsed == parsed
    assert {"content.delta", "content.done", "chunk"} <= kinds
    answer = chat.responses.parse(model=MODEL, input=QUESTION, text_format=Sum, max_output_tokens=200)
    assert answer.output_parsed == parsed


def test_openai_forces_a_call(chat: Any) -> None:
    tool = openai.pydantic_function_tool(Sum, name="other")
    for choice in ("required", {"type": "function", "function": {"name": "other"}}):
        (call,) = (
            chat.chat.completions.parse(
                model=MODEL,
                messages=[{"role": "user", "content": QUESTION}],
                tools=[tool],
                tool_choice=choice,
                parallel_tool_calls=False,
                max_tokens=200,
            )
            .choices[0]
            .message.tool_calls
        )
        assert call.function.name == "other" and call.function.parsed_arguments.model_dump() == ARGUMENTS


def test_anthropic_forces_a_call(url: str) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "other"}):
        message = client.messages.create(
            model=MODEL,
            max_tokens=200,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[{"name": "other", "input_schema": Sum.model_json_schema()}],
            tool_choice=choice,
        )
        (block,) = (block for block in message.content if block.type == "tool_use")
        assert block.name == "other" and block.input == ARGUMENTS and message.stop_reason == "tool_use"


def test_anthropic_parses(url: str) -> None:
    anthropic = pytest.importorskip("anthropic")
    if not hasattr(anthropic.resources.Messages, "parse"):
        pytest.skip("this anthropic asks for no form of an answer")
    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    messages = [{"role": "user", "content": QUESTION}]
    # the SDK leaves out of a schema what Anthropic's server does not follow, such as constants
    form = create_model("form", right=(bool, ...), sure=(bool, ...))
    message = client.messages.parse(model=MODEL, max_tokens=200, messages=messages, output_format=form)
    assert isinstance(message.parsed_output, form)


def test_llama_index(url: str) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like")
    model = like.OpenAILike(
        model=MODEL, api_base=f"{url}/v1", api_key=KEY, is_chat_model=True, is_function_calling_model=True,
        max_tokens=200,
    )  # fmt: skip
    core = pytest.importorskip("llama_index.core.llms")
    answer = model.as_structured_llm(Sum).chat([core.ChatMessage(role="user", content=QUESTION)])
    assert answer.raw.model_dump() == ARGUMENTS
