"""From the bytes of a request to the jobs of a service: parse, check, tokenise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from protocol.completion import CompletionRequest, Resume
from protocol.errors import ApiError, from_validation, model_not_found, unavailable, unprocessable
from protocol.generation import GenerationConfig
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest, OpenAIPrompt, SharedRequest
from protocol.status import ServerState
from server.api.service import Job, Service

OPENAI_DEFAULT_MAX_TOKENS = 16
"""`max_tokens` of ``/v1/completions`` where it is not given."""

LONG_TEXT = 16_384
"""Characters from which a text is worked on in a thread, so that the event loop stays free."""

_TOO_LONG = "context_length_exceeded"
"""OpenAI's code for a prompt that does not fit."""

Body = TypeVar("Body", bound=BaseModel)


@dataclass(slots=True)
class Call:
    """What one request asks of the service: each prompt is continued with the same options."""

    prompts: list[list[int]]
    config: GenerationConfig
    priority: int
    stream: bool
    resume: Resume | None
    field_of: Callable[[str], str]
    """As for `Job`."""

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def choices(self) -> int:
        """How many answers the response holds."""
        return len(self.prompts) * self.config.num_choices

    @property
    def unfinished(self) -> int:
        """How many of them are still to be made."""
        if self.resume is None:
            return self.choices
        return sum(not choice.finished for choice in self.resume.choices)

    def jobs(self, ids: Sequence[str]) -> list[Job | None]:
        """A job for each prompt, named by `ids`; None where a resumed stream has its answers."""
        size = self.config.num_choices
        jobs: list[Job | None] = []
        for i, (prompt, job_id) in enumerate(zip(self.prompts, ids, strict=True)):
            resume = None if self.resume is None else self.resume.choices[i * size : (i + 1) * size]
            done = resume is not None and all(choice.finished for choice in resume)
            job = Job(job_id, prompt, self.config, self.priority, self.stream, resume, self.field_of)
            jobs.append(None if done else job)
        return jobs


def parse(model: type[Body], body: bytes) -> Body:
    """The request in `body`.

    Raises:
        ApiError: 400 where it is not JSON, 422 where a field is not accepted.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def check_service(service: Service, model: str) -> None:
    """Raise 503 unless the service takes requests, 404 unless it serves `model`."""
    if service.state is not ServerState.READY:
        state = service.state.value
        raise unavailable(f"the server is {state}", code=state, retry_after=2)
    if model != service.model_id:
        raise model_not_found(model, [service.model_id])


async def completion_call(service: Service, request: CompletionRequest) -> Call:
    """The call that a native completion request makes."""
    check_service(service, request.model)
    config = request.generation_config
    prompt = await _token_ids(service, request.prompt, config.max_new_tokens)
    call = Call([prompt], config, request.priority, request.stream, request.resume, _native_field)
    return _checked(service, call)


async def openai_completion_call(service: Service, request: OpenAICompletionRequest) -> Call:
    """The call that ``/v1/completions`` makes; it may hold several prompts."""
    check_service(service, request.model)
    max_tokens = request.max_tokens or OPENAI_DEFAULT_MAX_TOKENS
    config = _config(request, max_tokens, request.logprobs)
    prompts = split_prompts(request.prompt)
    if len(prompts) > 1:
        _check_count(service, len(prompts))
    ids = [await _token_ids(service, prompt, max_tokens) for prompt in prompts]
    call = Call(ids, config, request.priority or 0, bool(request.stream), request.resume, _openai_field)
    return _checked(service, call)


async def chat_call(service: Service, request: ChatCompletionRequest) -> Call:
    """The call that ``/v1/chat/completions`` makes; unless limited, it may fill the context."""
    check_service(service, request.model)
    max_tokens = request.max_completion_tokens or request.max_tokens
    text = await _render(service, request)
    prompt = await _token_ids(service, text, max_tokens or 1, param="messages", special=False)
    if max_tokens is None:
        max_tokens = service.max_new_tokens(len(prompt), max(request.n or 1, request.num_beams or 1))
        if max_tokens < 1:
            raise _too_long(service, len(prompt), 1, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    config = _config(request, max_tokens, logprobs)
    field_of = _chat_field if request.max_completion_tokens else _old_chat_field
    call = Call([prompt], config, request.priority or 0, bool(request.stream), request.resume, field_of)
    return _checked(service, call)


def _native_field(option: str) -> str:
    return f"generation_config.{option}" if option in GenerationConfig.model_fields else option


def _openai_field(option: str) -> str:
    return {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}.get(option, option)


def _old_chat_field(option: str) -> str:
    return "messages" if option == "prompt" else _openai_field(option)


def _chat_field(option: str) -> str:
    return "max_completion_tokens" if option == "max_new_tokens" else _old_chat_field(option)


def split_prompts(prompt: OpenAIPrompt) -> list[str | list[int]]:
    """The prompts of ``/v1/completions``, each as text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [part for part in prompt if not isinstance(part, int)]


async def _render(service: Service, request: ChatCompletionRequest) -> str:
    try:
        messages = [
            {"role": message.role, "content": message.text()}
            | ({"name": message.name} if message.name else {})
            for message in request.messages
        ]
        size = sum(len(text) for message in messages for text in message.values())
        return await _work(size, lambda: service.tokenizer.render_chat(messages))
    except ValueError as error:
        raise unprocessable(str(error), param="messages") from None


async def _token_ids(
    service: Service, prompt: str | list[int], new_tokens: int, *, param: str = "prompt", special: bool = True
) -> list[int]:
    """The tokens of one prompt that the service can continue by `new_tokens`.

    Args:
        service: gives tokenizer and limits.
        prompt: text or token ids.
        new_tokens: how many shall come.
        param: the field that the prompt is from.
        special: put the special tokens around a text that the model expects there.
    """
    if isinstance(prompt, str):
        text = prompt
        # a text that cannot fit costs seconds and gigabytes to tokenise; normalisers may shorten it
        if len(text) > 2 * service.model_max_length * service.tokenizer.vocabulary.longest:
            message = f"{len(text)} characters are far more than {service.model_max_length} tokens can hold"
            raise unprocessable(message, param=param, code=_TOO_LONG)
        prompt = await _work(len(text), lambda: service.tokenizer.encode(text, special=special))
    if not prompt:
        raise unprocessable("the prompt has no tokens", param=param)
    _check_ids(service, prompt, param)
    if len(prompt) + new_tokens > service.model_max_length:
        raise _too_long(service, len(prompt), new_tokens, param)
    return prompt


def _check_count(service: Service, prompts: int) -> None:
    """Raise 422 where even an idle server could not queue as many prompts at once."""
    capacity = service.status().capacity
    if capacity is not None and prompts > capacity.max_waiting:
        message = f"the queue holds {capacity.max_waiting} prompts, the request has {prompts}"
        raise unprocessable(message, param="prompt", code="too_many_prompts")


Result = TypeVar("Result")


async def _work(size: int, function: Callable[[], Result]) -> Result:
    """What `function` makes of a text of `size` characters."""
    return function() if size < LONG_TEXT else await asyncio.to_thread(function)


def _config(request: SharedRequest, max_new_tokens: int, logprobs: int | None) -> GenerationConfig:
    try:
        return request.generation_config(max_new_tokens, logprobs)
    except ValidationError as error:
        raise from_validation(error) from None


def _checked(service: Service, call: Call) -> Call:
    """`call`, unless it names tokens that do not exist, or its answers cannot be streamed."""
    config = call.config
    _check_ids(service, config.stop_token_ids, call.field_of("stop_token_ids"))
    _check_ids(service, config.logit_bias, call.field_of("logit_bias"))
    _check_ids(service, config.eos_token_ids or (), call.field_of("eos_token_id"))
    if call.stream and not service.can_stream:
        raise unprocessable(f"stream: a {service.kind} server answers whole", param="stream")
    if call.resume is not None:
        _check_resume(service, call, call.resume)
    return call


def _check_ids(service: Service, ids: Sequence[int] | dict[int, float], param: str) -> None:
    highest = max(ids, default=0)
    if highest >= service.vocab_size:
        message = f"{param}: token id {highest} is not below the vocabulary size {service.vocab_size}"
        raise unprocessable(message, param=param)


def _check_resume(service: Service, call: Call, resume: Resume) -> None:
    if not call.stream:
        raise unprocessable("only a stream can be resumed", param="resume")
    if len(resume.choices) != call.choices:
        message = f"resume has {len(resume.choices)} choices, the request {call.choices}"
        raise unprocessable(message, param="resume.choices")
    for choice in resume.choices:
        _check_ids(service, choice.token_ids, "resume.choices")
        if len(choice.token_ids) > call.config.max_new_tokens:
            message = f"resume.choices: an answer has more than {call.config.max_new_tokens} tokens already"
            raise unprocessable(message, param="resume.choices")


def _too_long(service: Service, prompt_tokens: int, new_tokens: int, param: str) -> ApiError:
    message = (
        f"the prompt has {prompt_tokens} tokens, which with {new_tokens} new ones exceeds "
        f"the {service.model_max_length} tokens that the model can handle"
    )
    return unprocessable(message, param=param, code=_TOO_LONG)
