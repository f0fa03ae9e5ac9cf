"""``/v1/messages`` in the one form of a chat request."""

from __future__ import annotations

import json
from typing import Any

from protocol.messages import (
    BILLING,
    CountTokensRequest,
    MessageBlock,
    MessageParam,
    MessagesRequest,
    OutputConfig,
)
from protocol.openai import SharedRequest
from server.api.chat.ask import ChatAsk
from server.api.chat.constraints import Constraints
from server.api.chat.thinking import Thinking
from server.text.conversation import Conversation, Message, Tool, ToolCall
from server.text.formats.chosen import AnswerTools

_NAMES = {
    "stop": "stop_sequences",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
}


def messages_ask(request: CountTokensRequest) -> ChatAsk:
    """What `request` asks for; one that counts tokens asks for no answer."""
    choice = request.tool_choice
    kind = None if choice is None else choice.type
    offered = [] if kind == "none" else request.tools or []
    tools = [Tool(tool.name, tool.description, tool.input_schema) for tool in offered]
    output = request.output_config or OutputConfig()
    single = choice is not None and choice.disable_parallel_tool_use is True
    messages = _system(request)
    for turn in request.messages:
        messages += _turn(turn)
    last = request.messages[-1]
    # a last turn of the assistant is the beginning of the answer
    goes_on = last.role == "assistant" and messages[-1].texts is not None and not messages[-1].tool_calls
    return ChatAsk(
        Conversation(messages, tools, add_generation_prompt=not goes_on, continue_final_message=goes_on),
        _sampling(request),
        request.max_tokens if isinstance(request, MessagesRequest) else None,
        tools=AnswerTools([tool.definition() for tool in tools], single=single),
        constraints=Constraints(
            call=kind == "any",
            tool=choice.name if choice is not None and kind == "tool" else None,
            strict=tuple(
                (f"tools.{place}.strict", tool.name)
                for place, tool in enumerate(request.tools or ())
                if tool.strict
            ),
            text=None if output.format is None else output.format.schema_,
        ),
        thinking=_thinking(request),
        names=_NAMES,
    )


def _sampling(request: CountTokensRequest) -> SharedRequest:
    options: dict[str, Any] = {"model": request.model}
    if isinstance(request, MessagesRequest):
        names = (
            "stream temperature top_p top_k seed min_p repetition_penalty skip_special_tokens priority "
            "cache_salt resume"
        )
        options |= {name: getattr(request, name) for name in names.split()}
        options["stop"] = request.stop_sequences
    return SharedRequest.model_construct(**options)


def _thinking(request: CountTokensRequest) -> Thinking:
    """This API reasons only where it is asked to; ``adaptive`` leaves it to the model."""
    asked, variables = request.thinking, request.chat_template_kwargs or {}
    effort = request.output_config.effort if request.output_config else None
    if asked is None:
        return Thinking(effort, enabled=False, by_default=True, variables=variables)
    if asked.type == "adaptive":
        return Thinking(effort, variables=variables)
    return Thinking(effort, enabled=asked.type == "enabled", variables=variables)


def _system(request: CountTokensRequest) -> list[Message]:
    system = request.system
    texts = [system] if isinstance(system, str) else [block.text for block in system or ()]
    if texts and texts[0].startswith(BILLING):
        _, _, rest = texts[0].partition("\n")
        texts = [rest, *texts[1:]] if rest else texts[1:]
    return [Message("system", texts)] if texts else []


def _turn(turn: MessageParam) -> list[Message]:
    """The messages of a turn: results of tools are messages of their own."""
    if isinstance(turn.content, str):
        return [Message(turn.role, [turn.content])]
    messages: list[Message] = []
    for block in turn.content:
        if block.type == "tool_result":
            messages.append(Message("tool", _result(block), tool_call_id=block.tool_use_id))
            continue
        if not messages or messages[-1].role != turn.role:
            messages.append(Message(turn.role))
        _add(messages[-1], block)
    return messages or [Message(turn.role, [""])]


def _add(message: Message, block: MessageBlock) -> None:
    if block.type == "text":
        message.texts = [*(message.texts or ()), block.text or ""]
    elif block.type == "thinking":
        message.reasoning = (message.reasoning or "") + (block.thinking or "")
    elif block.type == "tool_use":
        arguments = json.dumps(block.input, ensure_ascii=False)
        message.tool_calls.append(ToolCall(block.id or "", block.name or "", arguments))


def _result(block: MessageBlock) -> list[str]:
    """The text of a result; chat templates have no other place to say that it is an error."""
    content = block.content
    texts = [content] if isinstance(content, str) else [part.text or "" for part in content or ()]
    return ["Error: ", *texts] if block.is_error else texts
