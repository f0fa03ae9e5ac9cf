"""A request that is refused is told which of its fields is at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from protocol.completion import CompletionRequest
from protocol.errors import ApiError, from_validation
from protocol.messages import MessagesRequest
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest, SharedRequest
from protocol.responses import ResponsesRequest

PROMPT = {"prompt": "Hi"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def refusal(model: type[BaseModel], fields: dict[str, Any]) -> ApiError:
    """The error of a request, told by its model or by the options that it is turned into."""
    try:
        request = model.model_validate_json(body(fields))
        assert isinstance(request, SharedRequest), f"accepted: {fields}"
        request.generation_config(max_new_tokens=4, logprobs=None)
    except ValidationError as error:
        return from_validation(error)
    except ApiError as error:
        return error
    raise AssertionError(f"accepted: {fields}")


def body(fields: dict[str, Any]) -> str:
    return json.dumps({"model": "m", **fields})


def options(**config: Any) -> dict[str, Any]:
    return {**PROMPT, "generation_config": config}


def parts(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        (CompletionRequest, options(min_new_tokens=9, max_new_tokens=4), "generation_config.min_new_tokens"),
        (CompletionRequest, options(n=3, num_beams=2), "generation_config.n"),
        *(
            (CompletionRequest, options(num_beams=2, **{name: 4}), f"generation_config.{name}")
            for name in ("prompt_lookup_num_tokens", "max_matching_ngram_size")
        ),
        (
            CompletionRequest,
            options(num_return_sequences=3, num_beams=2),
            "generation_config.num_return_sequences",
        ),
        (CompletionRequest, options(num_return_sequences=2), "generation_config.num_return_sequences"),
        (CompletionRequest, options(do_sample=True, temperature=0), "generation_config.temperature"),
        (CompletionRequest, options(pad_token_id=10**30), "generation_config.pad_token_id"),
        (CompletionRequest, PROMPT | {"resume": {"created": 10**30, "choices": []}}, "resume.created"),
        (OpenAICompletionRequest, PROMPT | {"seed": 2**80 + 12345}, "seed"),
        (OpenAICompletionRequest, PROMPT | {"seed": -(2**63) - 1}, "seed"),
        (OpenAICompletionRequest, PROMPT | {"min_tokens": 9}, "min_tokens"),
        (OpenAICompletionRequest, PROMPT | {"min_tokens": -1}, "min_tokens"),
        (OpenAICompletionRequest, PROMPT | {"best_of": 2}, "best_of"),
        (OpenAICompletionRequest, PROMPT | {"suffix": "x"}, "suffix"),
        (OpenAICompletionRequest, PROMPT | {"stream_options": {"include_usage": True}}, "stream_options"),
        (
            OpenAICompletionRequest,
            PROMPT | {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        (
            ChatCompletionRequest,
            CHAT | {"stream": False, "stream_options": {"include_usage": True}},
            "stream_options",
        ),
        (ChatCompletionRequest, CHAT | {"functions": [{"name": "f"}]}, "functions"),
        (ChatCompletionRequest, CHAT | {"function_call": "auto"}, "function_call"),
        (ChatCompletionRequest, CHAT | {"modalities": ["text", "audio"]}, "modalities.1"),
        (ChatCompletionRequest, CHAT | {"modalities": []}, "modalities"),
        (ChatCompletionRequest, CHAT | {"audio": {"voice": "x", "format": "wav"}}, "audio"),
        (ChatCompletionRequest, CHAT | {"prediction": {"type": "content", "content": "x"}}, "prediction"),
        (ChatCompletionRequest, CHAT | {"web_search_options": {}}, "web_search_options"),
        (ChatCompletionRequest, CHAT | {"verbosity": "low"}, "verbosity"),
        (ChatCompletionRequest, CHAT | {"chat_template": "{{ x }}"}, "chat_template"),
        (ChatCompletionRequest, CHAT | {"documents": []}, "documents"),
        (ChatCompletionRequest, CHAT | {"use_beam_search": True}, "use_beam_search"),
        (OpenAICompletionRequest, PROMPT | {"add_special_tokens": False}, "add_special_tokens"),
        (OpenAICompletionRequest, PROMPT | {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        (OpenAICompletionRequest, PROMPT | {"no_such": None}, "no_such"),
        (CompletionRequest, options(no_such=None), "generation_config.no_such"),
        (OpenAICompletionRequest, PROMPT | {"n": 2.5}, "n"),
        (OpenAICompletionRequest, PROMPT | {"n": 1e300}, "n"),
        (OpenAICompletionRequest, PROMPT | {"n": True}, "n"),
        (ChatCompletionRequest, {"messages": [{"role": "user"}]}, "messages.0.content"),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        (ChatCompletionRequest, {"messages": [{"role": "user", "contents": "x"}]}, "messages.0.contents"),
        (ChatCompletionRequest, {"messages": [{"role": "system"}]}, "messages.0.content"),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "assistant", "tool_calls": []}]},
            "messages.0.content",
        ),
        (
            ChatCompletionRequest,
            {"messages": [{"role": "tool", "tool_call_id": "1"}]},
            "messages.0.content",
        ),
        (ChatCompletionRequest, parts({"type": "text", "text": "x", "txt": 1}), "messages.0.content.0.txt"),
        (ResponsesRequest, {"input": [{"role": "user", "content": []}]}, "input.0.content"),
        (
            ResponsesRequest,
            {"input": [{"type": "function_call_output", "call_id": "1", "output": []}]},
            "input.0.output",
        ),
        (
            MessagesRequest,
            {"max_tokens": 1, "messages": [{"role": "user", "content": []}]},
            "messages.0.content",
        ),
        (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user"}]}, "messages.0.content"),
        (ChatCompletionRequest, CHAT | {"tools": [{}]}, "tools.0.type"),
        (ChatCompletionRequest, CHAT | {"tool_choice": "required"}, "tool_choice"),
        (ChatCompletionRequest, CHAT | {"tool_choice": {"type": "function"}}, "tool_choice.function"),
        (ChatCompletionRequest, CHAT | {"top_logprobs": 2}, "top_logprobs"),
        (ChatCompletionRequest, CHAT | {"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        (ChatCompletionRequest, CHAT | {"echo": True}, "echo"),
        (ChatCompletionRequest, CHAT | {"include_reasoning": False}, "include_reasoning"),
        (ChatCompletionRequest, CHAT | {"mm_processor_kwargs": {"x": 1}}, "mm_processor_kwargs"),
        (
            OpenAICompletionRequest,
            PROMPT | {"return_tokens_as_token_ids": True},
            "return_tokens_as_token_ids",
        ),
        (ChatCompletionRequest, CHAT | {"response_format": {"type": "xml"}}, "response_format.type"),
        (ChatCompletionRequest, parts({"type": "text", "text": None}), "messages.0.content.0.text"),
        (ChatCompletionRequest, parts({"type": "text", "text": 7}), "messages.0.content.0.text"),
        (ChatCompletionRequest, parts({"type": "text"}), "messages.0.content.0.text"),
        (
            ChatCompletionRequest,
            parts({"type": "text", "text": "x"}, {"type": "image_url"}),
            "messages.0.content.1.type",
        ),
    ],
)
def test_the_field_at_fault_is_named(model: type[BaseModel], fields: dict[str, Any], param: str) -> None:
    error = refusal(model, fields)
    assert (error.status, error.body.param) == (422, param), error
    assert str(error).startswith(
        (f"{param}: ", f"{param!r} ", f"unknown option {param!r}")
    ) and "\n" not in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": -1},
        {"seed": 2**63 - 1},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"tool_choice": "none"},
        parts({"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": ""}),
    ],
)
def test_what_openai_takes_is_taken(fields: dict[str, Any]) -> None:
    request = ChatCompletionRequest.model_validate_json(body(CHAT | fields))
    assert request.generation_config(max_new_tokens=4, logprobs=None).seed >= 0
    assert "".join(request.messages[0].texts() or ()) in ("Hi", "a")
