"""``/v1/chat/completions`` in the one form of a chat request."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.chat import ChatMessage, ChatTool, NamedChoice, ToolChoice
from protocol.openai import ChatCompletionRequest
from server.api.chat.ask import ChatAsk
from server.api.chat.constraints import Constraints
from server.api.chat.thinking import Thinking
from server.text.conversation import Conversation, Message, Tool, ToolCall
from server.text.formats.chosen import AnswerTools


def chat_ask(request: ChatCompletionRequest) -> ChatAsk:
    """What `request` asks for."""
    tools = offered([tool_of(tool) for tool in request.tools or ()], request.tool_choice)
    limited = request.max_completion_tokens is not None
    conversation = Conversation(
        [message_of(message) for message in request.messages],
        tools,
        add_generation_prompt=request.add_generation_prompt is not False
        and not request.continue_final_message,
        continue_final_message=bool(request.continue_final_message),
    )
    return ChatAsk(
        conversation,
        request,
        request.max_completion_tokens if limited else request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        tools=AnswerTools([tool.definition() for tool in tools], single=request.parallel_tool_calls is False),
        constraints=Constraints(
            call=request.tool_choice == "required",
            tool=request.tool_choice.function.name if isinstance(request.tool_choice, NamedChoice) else None,
            strict=strict_tools(request.tools or ()),
            text=None if request.response_format is None else request.response_format.answer_schema,
        ),
        thinking=Thinking(request.reasoning_effort, variables=request.chat_template_kwargs or {}),
        names={"max_tokens": "max_completion_tokens"} if limited else {},
    )


def offered(tools: list[Tool], choice: ToolChoice | None) -> list[Tool]:
    """The tools that the model is told of: none where it shall call none."""
    return [] if choice == "none" else tools


def message_of(message: ChatMessage) -> Message:
    """A turn as the conversation has it."""
    reasoning = message.reasoning if message.reasoning_content is None else message.reasoning_content
    return Message(
        message.role,
        message.texts(),
        reasoning=reasoning,
        tool_calls=[
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        ],
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def tool_of(tool: ChatTool) -> Tool:
    function = tool.function
    return Tool(function.name, function.description, function.parameters)


def strict_tools(tools: Sequence[ChatTool]) -> tuple[tuple[str, str], ...]:
    """The field that asks for it, and the name, of tools whose arguments must follow their schema."""
    return tuple(
        (f"tools.{place}.function.strict", tool.function.name)
        for place, tool in enumerate(tools)
        if tool.function.strict
    )
