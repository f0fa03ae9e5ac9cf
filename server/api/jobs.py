"""From the bytes of a request to the jobs of a service: parse, check, tokenise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from protocol.completion import CompletionRequest, Resume, ResumedChoice
from protocol.errors import ApiError, from_validation, model_not_found, unavailable, unprocessable
from protocol.generation import GenerationConfig
from protocol.openai import OpenAICompletionRequest, OpenAIPrompt, SharedRequest
from server.api.reading import AnswerReader
from server.api.service import Job, Service, check_ready
from server.text import checks
from server.text.bad_words import with_tokens
from utils.threads import in_turn

OPENAI_DEFAULT_MAX_TOKENS = 16
"""`max_tokens` of ``/v1/completions`` where it is not given."""

MAX_PROMPT_REPORTS = 2**18
"""Log probabilities of prompts that one answer holds: some 20 MB of JSON."""

LONG_TEXT = 8192
"""Characters from which a text is worked on in a thread, so that the event loop stays free."""

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
    shown_markers: str | None = ""
    """As for `Job`."""
    reader: AnswerReader | None = None
    """Sorts the answers; None where they are plain text."""
    empty: bool = False
    """No token is to be generated, or one that is not shown: every answer is empty."""
    cache_salt: bytes = b""
    """As for `Job`."""

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def prompt_reports(self) -> int:
        """How many log probabilities of prompts the response holds."""
        top = self.config.prompt_logprobs
        return 0 if top is None else self.prompt_tokens * (top + 1) * self.config.num_choices

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
        size, silent = self.config.num_choices, self.empty and self.config.prompt_logprobs is None
        jobs: list[Job | None] = []
        for i, (prompt, job_id) in enumerate(zip(self.prompts, ids, strict=True)):
            resume = None if self.resume is None else self.resume.choices[i * size : (i + 1) * size]
            if silent or (resume is not None and all(choice.finished for choice in resume)):
                jobs.append(None)
                continue
            job = Job(
                job_id,
                prompt,
                self._config_of(resume),
                self.priority,
                self.stream,
                resume,
                self.field_of,
                self.shown_markers,
                self.cache_salt,
            )
            jobs.append(job)
        return jobs

    def _config_of(self, resume: Sequence[ResumedChoice] | None) -> GenerationConfig:
        """What is told of a prompt is told with the first piece of each answer: not where all have begun."""
        if resume is None or not all(choice.finished or choice.token_ids for choice in resume):
            return self.config
        return self.config.model_copy(update={"prompt_logprobs": None})


async def parse(model: type[Body], body: bytes) -> Body:
    """The request in `body`.

    Raises:
        ApiError: 400 where it is not JSON, 422 where a field is not accepted.
    """
    try:
        return await work(len(body), lambda: model.model_validate_json(body))
    except ValidationError as error:
        raise from_validation(error) from None


def check_service(service: Service, model: str) -> None:
    """Raise 503 unless the service takes requests, 404 unless it serves `model`."""
    check_ready(service)
    served = [service.model_id, *service.model_aliases]
    if model not in served:
        raise model_not_found(model, served)


async def completion_call(service: Service, request: CompletionRequest) -> Call:
    """The call that a native completion request makes."""
    check_service(service, request.model)
    config = request.generation_config
    prompt = await _token_ids(service, request.prompt, config.max_new_tokens, _native_field("max_new_tokens"))
    call = Call([prompt], config, request.priority, request.stream, request.resume, _native_field)
    call.cache_salt = (request.cache_salt or "").encode()
    return await checked(service, call)


async def openai_completion_call(service: Service, request: OpenAICompletionRequest) -> Call:
    """The call that ``/v1/completions`` makes; it may hold several prompts."""
    check_service(service, request.model)
    empty = request.max_tokens == 0  # the prompt is checked, and with `echo` given back
    max_tokens = request.max_tokens or (1 if empty else OPENAI_DEFAULT_MAX_TOKENS)
    config = openai_config(service, request, max_tokens, request.logprobs)
    prompts = split_prompts(request.prompt)
    if len(prompts) > 1:
        _check_count(service, len(prompts))
    room = 0 if empty and config.prompt_logprobs is None else max_tokens
    limit = openai_field("max_new_tokens") if request.max_tokens else None
    ids = [await _token_ids(service, prompt, room, limit) for prompt in prompts]
    call = Call(
        ids,
        config,
        request.priority or 0,
        bool(request.stream),
        request.resume,
        openai_field if request.prompt_logprobs is not None else _echo_field,
        shown_markers(request.skip_special_tokens),
        empty=empty,
        cache_salt=(request.cache_salt or "").encode(),
    )
    return await checked(service, call)


def shown_markers(skip_special_tokens: bool | None) -> str | None:
    """Which special tokens answers show that are plain text; see `Job.shown_markers`."""
    return None if skip_special_tokens is False else ""


def _native_field(option: str) -> str:
    return f"generation_config.{option}" if option in GenerationConfig.model_fields else option


def openai_field(option: str) -> str:
    return {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}.get(option, option)


def _echo_field(option: str) -> str:
    """The same where log probabilities of prompts are told because they are echoed."""
    return "echo" if option == "prompt_logprobs" else openai_field(option)


def split_prompts(prompt: OpenAIPrompt) -> list[str | list[int]]:
    """The prompts of ``/v1/completions``, each as text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [part for part in prompt if not isinstance(part, int)]


async def _token_ids(
    service: Service, prompt: str | list[int], new_tokens: int, limit: str | None, *, param: str = "prompt"
) -> list[int]:
    """The tokens of one prompt that the service can continue by `new_tokens`.

    Args:
        service: gives tokenizer and limits.
        prompt: text or token ids.
        new_tokens: how many shall come.
        limit: the field that says so, where the request sets one.
        param: the field that the prompt is from.
    """
    size, tokenizer = size_of(service), service.tokenizer
    if isinstance(prompt, str):
        text = prompt
        checks.check_text(size, tokenizer, text, param)
        prompt = await work(len(text), lambda: checks.encode(tokenizer, text, param))
    checks.check_prompt(size, prompt, new_tokens, param, limit)
    return prompt


def size_of(service: Service) -> checks.ModelSize:
    return checks.ModelSize(service.vocab_size, service.model_max_length)


def _check_count(service: Service, prompts: int) -> None:
    """Raise 422 where even an idle server could not queue as many prompts at once."""
    capacity = service.status().capacity
    if capacity is not None and prompts > capacity.max_waiting:
        message = f"the queue holds {capacity.max_waiting} prompts, the request has {prompts}"
        raise unprocessable(message, param="prompt", code="too_many_prompts")


Result = TypeVar("Result")


async def work(size: int, function: Callable[[], Result]) -> Result:
    """What `function` makes of a text of `size` characters."""
    return function() if size < LONG_TEXT else await asyncio.to_thread(function)


def openai_config(
    service: Service, request: SharedRequest, max_new_tokens: int, logprobs: int | None
) -> GenerationConfig:
    """The options of `request`, with those of the checkpoint for what it leaves out; a stream that goes on
    has those with which it was begun.

    Raises:
        ApiError: an option is out of range.
    """
    begun = None if request.resume is None else request.resume.sampling
    defaults = dict(service.sampling_defaults if begun is None else begun)
    if (request.num_beams or 1) > 1:  # beams are searched for, unless the request says otherwise
        defaults.pop("temperature", None)
    missing = {name: value for name, value in defaults.items() if getattr(request, name) is None}
    try:
        return request.model_copy(update=missing).generation_config(max_new_tokens, logprobs)
    except ValidationError as error:
        raise _as_asked(from_validation(error)) from None


def _as_asked(error: ApiError) -> ApiError:
    """`error`, which names an option of `GenerationConfig`, as the request calls it."""
    option = error.body.param
    if option is None or (field := openai_field(option)) == option:
        return error
    message = error.body.message.replace(f"{option}: ", f"{field}: ", 1)
    return unprocessable(message, param=field, code=error.body.code)


async def checked(service: Service, call: Call) -> Call:
    """`call`, unless it names tokens that do not exist, or goes on with a stream that is not its own."""
    size, config = size_of(service), call.config
    checks.check_config(size, config, call.field_of)
    if config.prompt_logprobs is not None and call.prompt_reports > MAX_PROMPT_REPORTS:
        field = call.field_of("prompt_logprobs")
        message = f"{field}: {call.prompt_reports} log probabilities of prompts; at most {MAX_PROMPT_REPORTS}"
        raise unprocessable(f"{message} are told at once", param=field)
    call.config = with_tokens(config, service.tokenizer, call.field_of("bad_words"))
    if config.structured_outputs is not None:
        field = call.field_of("structured_outputs")
        call.config = await in_turn(checks.with_grammar, call.config, field)
    if call.resume is not None:
        if not call.stream:
            raise unprocessable("only a stream can be resumed", param="resume")
        if call.resume.weights not in (None, service.fingerprint):
            # 503: the gateway learned of this server's weights before they changed, and shall ask another
            raise unavailable("the stream was begun with other weights", code="other_weights")
        checks.check_resume(size, config, call.resume.choices, call.choices)
        if call.resume.cached_tokens > call.prompt_tokens:
            message = f"resume: {call.resume.cached_tokens} cached tokens of {call.prompt_tokens} in prompts"
            raise unprocessable(message, param="resume")
    return call
