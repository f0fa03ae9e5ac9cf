"""What a request of any chat API asks for, in one form, and the call of the service that it makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from protocol.errors import ApiError, unprocessable
from protocol.openai import SharedRequest
from server.api.chat.constraints import Constraints, answer_form
from server.api.chat.thinking import Thinking, template_variables
from server.api.jobs import Call, check_service, checked, openai_config, openai_field, shown_markers, size_of
from server.api.reading import AnswerReader
from server.api.service import Service
from server.text import checks
from server.text.conversation import Conversation
from server.text.deadline import run_within
from server.text.formats.chosen import AnswerTools
from server.text.formats.parser import AnswerParser
from utils.threads import in_turn

TEMPLATE_SECONDS = 10.0
"""How long a chat template may take: it is a program, and its loops may depend on the messages."""

Result = TypeVar("Result")


@dataclass(slots=True)
class ChatAsk:
    """A conversation to be answered, and how."""

    conversation: Conversation
    sampling: SharedRequest
    """Model, stream and options; what an API lacks is not set."""
    max_tokens: int | None = None
    """None: as far as the context goes."""
    logprobs: int | None = None
    tools: AnswerTools = field(default_factory=AnswerTools)
    """Those that may be called, which may be fewer than the conversation shows."""
    constraints: Constraints = field(default_factory=Constraints)
    thinking: Thinking = field(default_factory=Thinking)
    names: dict[str, str] = field(default_factory=dict)
    """What the API calls fields of ``/v1/chat/completions`` for which it has names of its own."""

    def name(self, name: str) -> str:
        return self.names.get(name, name)

    def field_of(self, option: str) -> str:
        """As for `Job`."""
        return self.name("messages" if option == "prompt" else openai_field(option))


@dataclass(slots=True)
class ChatPrompt:
    """A conversation as the model sees it."""

    text: str
    token_ids: list[int]


async def chat_call(service: Service, ask: ChatAsk) -> Call:
    """The call that `ask` makes.

    Raises:
        ApiError: it cannot be done; names the field at fault.
    """
    check_service(service, ask.sampling.model)
    prompt = await read_prompt(service, ask)
    await _hold_to_form(service, ask, prompt.text)
    options, size, where = ask.sampling, size_of(service), ask.name("messages")
    max_tokens = ask.max_tokens
    limit = None if max_tokens is None else ask.field_of("max_new_tokens")
    checks.check_prompt(size, prompt.token_ids, max_tokens or 1, where, limit)
    if max_tokens is None:
        rows = max(options.n or 1, options.num_beams or 1)
        max_tokens = service.max_new_tokens(len(prompt.token_ids), rows)
        if max_tokens < 1:
            raise checks.too_long(size, len(prompt.token_ids), 1, where)
    try:
        config = openai_config(service, options, max_tokens, ask.logprobs)
    except ApiError as error:
        raise _renamed(error, ask) from None
    priority, stream = options.priority or 0, bool(options.stream)
    call = Call([prompt.token_ids], config, priority, stream, options.resume, ask.field_of)
    call.cache_salt = (options.cache_salt or "").encode()
    _read_answers(service, ask, prompt.text, call)
    return await checked(service, call)


async def read_prompt(service: Service, ask: ChatAsk) -> ChatPrompt:
    """The conversation as text and as tokens, by the checkpoint's own template.

    Raises:
        ApiError: the template cannot take it; names the field at fault.
    """
    tokenizer, where = service.tokenizer, ask.name("messages")
    _check_tools(service, ask)
    conversation = ask.conversation
    conversation.variables |= template_variables(tokenizer, ask.thinking, ask.name)
    text = await _templated(lambda: tokenizer.render_chat(conversation), where)
    checks.check_text(size_of(service), tokenizer, text, where)
    token_ids = await _templated(lambda: tokenizer.encode_chat(conversation, text), where)
    return ChatPrompt(text, token_ids)


async def _templated(function: Callable[[], Result], where: str) -> Result:
    try:
        return await run_within(TEMPLATE_SECONDS, function)
    except TimeoutError:
        message = f"the chat template takes longer than {TEMPLATE_SECONDS:g} s with these messages"
        raise unprocessable(f"{where}: {message}", param=where) from None
    except ValueError as error:
        raise unprocessable(f"{where}: {error}", param=where) from None


def _check_tools(service: Service, ask: ChatAsk) -> None:
    """Refuse tools that the model would not be told of, or whose calls could not be told from text."""
    if not ask.tools.definitions:
        return
    chosen, where = service.tokenizer.answer_format, ask.name("tools")
    if not service.tokenizer.template_has("tools"):
        message = f"{where}: not supported: this model's chat template takes no tools"
        raise unprocessable(message, param=where, code="unsupported")
    if not chosen.reads_calls:
        message = (
            f"{where}: not supported: the format of this model's calls is not known "
            f"('chat_format' is {chosen.name}: {chosen.reason})"
        )
        raise unprocessable(message, param=where, code="unsupported")


async def _hold_to_form(service: Service, ask: ChatAsk, text: str) -> None:
    """Make a form that `ask` insists on an option of sampling."""
    where = ask.constraints.field(ask.name)
    if where is None:
        return
    if ask.sampling.structured_outputs is not None:
        raise unprocessable(f"{where}: cannot be combined with structured_outputs", param=where)
    if ask.conversation.continue_final_message:
        raise unprocessable(f"{where}: cannot be combined with continue_final_message", param=where)
    tokenizer = service.tokenizer
    in_reasoning = tokenizer.answer_format.opens_reasoning(text)
    form = await in_turn(answer_form, ask.constraints, ask.tools, tokenizer, where, in_reasoning=in_reasoning)
    ask.sampling = ask.sampling.model_copy(update={"structured_outputs": form})
    ask.names = ask.names | {"structured_outputs": where}


def _read_answers(service: Service, ask: ChatAsk, text: str, call: Call) -> None:
    """Let `call` sort its answers, where there may be something to sort."""
    chosen, skip = service.tokenizer.answer_format, ask.sampling.skip_special_tokens
    call.shown_markers = shown_markers(skip)
    continued = ask.conversation.final_text()

    def parser() -> AnswerParser | None:
        return chosen.parser(text, ask.tools, continued=continued)

    parsers = [one for _ in range(call.choices) if (one := parser()) is not None]
    if parsers:
        call.reader = AnswerReader(parsers)
        if skip is not False:
            call.shown_markers = chosen.markers(ask.tools)


def _renamed(error: ApiError, ask: ChatAsk) -> ApiError:
    """`error` under the name that the API has for the field at fault."""
    param = error.body.param
    if param is not None and (name := ask.field_of(param)) != param:
        error.body.message = error.body.message.replace(param, name, 1)
        error.body.param = name
    return error
