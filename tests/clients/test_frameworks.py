"""Frameworks on top of the SDKs: each calls the tool, and answers with what it returned."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import KEY, MODEL

pytestmark = pytest.mark.clients

QUESTION = "What is 17 plus 25?"
SUM = "The sum is 42."


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first.
        b: the second.
    """
    assert (a, b) == (17, 25)
    return a + b


def test_langchain_openai(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    answer = model.bind_tools([add]).invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["args"] == {"a": 17, "b": 25}
    chunks = list(model.bind_tools([add]).stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["args"] == {"a": 17, "b": 25}


def test_langchain_agent(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    agents = pytest.importorskip("langchain.agents")
    model = langchain.ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    result = agents.create_agent(model, [add]).invoke({"messages": [("user", QUESTION)]})
    assert result["messages"][-1].content == SUM


async def test_llama_index(url: str) -> None:
    like = pytest.importorskip("llama_index.llms.openai_like")
    workflow = pytest.importorskip("llama_index.core.agent.workflow")
    model = like.OpenAILike(
        model=MODEL,
        api_base=f"{url}/v1",
        api_key=KEY,
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=2048,
        max_retries=0,
    )
    assert str(model.complete(QUESTION)) == SUM
    answer = await workflow.FunctionAgent(tools=[add], llm=model).run(QUESTION)
    assert str(answer) == SUM


async def test_pydantic_ai_openai(url: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))
    agent = ai.Agent(model, tools=[ai.Tool(add, strict=False)])
    assert (await agent.run(QUESTION)).output == SUM


async def test_pydantic_ai_anthropic(url: str) -> None:
    ai = pytest.importorskip("pydantic_ai")
    anthropic = pytest.importorskip("anthropic")
    if int(anthropic.__version__.partition(".")[0]) >= 1:
        pytest.skip(
            "pydantic-ai 2.31 cannot be used with this anthropic: it passes arguments of releases below 1"
        )
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0)
    agent = ai.Agent(AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client)), tools=[add])
    assert (await agent.run(QUESTION)).output == SUM


@pytest.mark.parametrize("api", ["responses", "chat"])
async def test_openai_agents(url: str, api: str) -> None:
    agents = pytest.importorskip("agents")
    openai = pytest.importorskip("openai")
    agents.set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    kind: Any = agents.OpenAIResponsesModel if api == "responses" else agents.OpenAIChatCompletionsModel
    # strict arguments need a grammar
    tool = agents.function_tool(add, strict_mode=False)
    agent = agents.Agent(name="Adder", tools=[tool], model=kind(model=MODEL, openai_client=client))
    assert (await agents.Runner.run(agent, QUESTION)).final_output == SUM
    streamed = agents.Runner.run_streamed(agent, QUESTION)
    kinds = [event.type async for event in streamed.stream_events()]
    assert streamed.final_output == SUM and "raw_response_event" in kinds


def test_litellm(url: str) -> None:
    litellm = pytest.importorskip("litellm")
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    messages = [{"role": "user", "content": QUESTION}]
    answer = litellm.completion(
        f"openai/{MODEL}", messages, api_base=f"{url}/v1", api_key=KEY, tools=tools, num_retries=0
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "add"
    answer = litellm.completion(
        f"anthropic/{MODEL}", messages, api_base=url, api_key=KEY, tools=tools, max_tokens=200, num_retries=0
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "add"
