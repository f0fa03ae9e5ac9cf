"""``/v1/responses`` in the one form of a chat request."""

from __future__ import annotations

from protocol.openai import SharedRequest
from protocol.responses import ResponseContent, ResponseItem, ResponseNamedChoice, ResponsesRequest
from server.api.chat.ask import ChatAsk
from server.api.chat.constraints import Constraints
from server.api.chat.thinking import Thinking
from server.text.conversation import Conversation, Message, Tool, ToolCall
from server.text.formats.chosen import AnswerTools

_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}


def responses_ask(request: ResponsesRequest) -> ChatAsk:
    """What `request` asks for."""
    offered = [] if request.tool_choice == "none" else request.tools or []
    tools = [Tool(tool.name, tool.description, tool.parameters) for tool in offered]
    answer_format = request.text.format if request.text else None
    return ChatAsk(
        Conversation(_messages(request), tools),
        _sampling(request),
        request.max_output_tokens,
        tools=AnswerTools([tool.definition() for tool in tools], single=request.parallel_tool_calls is False),
        constraints=Constraints(
            call=request.tool_choice == "required",
            tool=request.tool_choice.name if isinstance(request.tool_choice, ResponseNamedChoice) else None,
            strict=tuple(
                (f"tools.{place}.strict", tool.name)
                for place, tool in enumerate(request.tools or ())
                if tool.strict
            ),
            text=None if answer_format is None else answer_format.answer_schema,
        ),
        thinking=Thinking(
            request.reasoning.effort if request.reasoning else None,
            variables=request.chat_template_kwargs or {},
        ),
        names=_NAMES,
    )


def _sampling(request: ResponsesRequest) -> SharedRequest:
    options = "model temperature top_p top_k min_p repetition_penalty seed skip_special_tokens"
    names = f"{options} stream priority cache_salt resume".split()
    return SharedRequest.model_construct(**{name: getattr(request, name) for name in names})


def _messages(request: ResponsesRequest) -> list[Message]:
    """The conversation: what belongs to one turn of the assistant becomes one message."""
    messages: list[Message] = []
    if request.instructions is not None:
        messages.append(Message("system", [request.instructions]))
    if isinstance(request.input, str):
        messages.append(Message("user", [request.input]))
        return messages
    for item in request.input:
        if item.type == "message" and item.role != "assistant":
            messages.append(Message(item.role or "user", _texts(item.content)))
        elif item.type == "function_call_output":
            messages.append(Message("tool", _texts(item.output), tool_call_id=item.call_id))
        else:
            _add_to_turn(messages, item)
    return messages


def _add_to_turn(messages: list[Message], item: ResponseItem) -> None:
    """Add what the assistant thought, said or called to its turn."""
    begins = not messages or messages[-1].role != "assistant"
    if not begins and item.type == "reasoning":
        begins = True  # it comes first in a turn
    if not begins and item.type == "message":
        begins = messages[-1].texts is not None or bool(messages[-1].tool_calls)
    if begins:
        messages.append(Message("assistant"))
    turn = messages[-1]
    if item.type == "message":
        turn.texts = _texts(item.content)
    elif item.type == "reasoning":
        pieces = item.content if isinstance(item.content, list) and item.content else item.summary or []
        turn.reasoning = "\n".join(piece.words for piece in pieces) or None
    else:
        turn.tool_calls.append(ToolCall(item.call_id or "", item.name or "", item.arguments or ""))


def _texts(content: ResponseContent | None) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part.words for part in content or ()]
