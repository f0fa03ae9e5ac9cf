"""What requests may hold though it changes nothing: nulls, defaults, whole numbers with a point."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from protocol.body import Body
from protocol.completion import CompletionRequest
from protocol.generation import GenerationConfig
from protocol.messages import MessagesRequest
from protocol.openai import ChatCompletionRequest, OpenAICompletionRequest
from protocol.responses import ResponsesRequest
from protocol.tokenization import TokenizeRequest

MESSAGES = {"messages": [{"role": "user", "content": "x"}]}
BODIES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (CompletionRequest, {"model": "m", "prompt": "x"}),
    (OpenAICompletionRequest, {"model": "m", "prompt": "x"}),
    (ChatCompletionRequest, {"model": "m", **MESSAGES}),
    (ResponsesRequest, {"model": "m", "input": "x"}),
    (MessagesRequest, {"model": "m", "max_tokens": 5, **MESSAGES}),
    (TokenizeRequest, {"prompt": "x"}),
]


@pytest.mark.parametrize(("model", "body"), BODIES, ids=lambda value: getattr(value, "__name__", ""))
def test_null_is_as_if_it_were_left_out(model: type[BaseModel], body: dict[str, Any]) -> None:
    plain = model.model_validate_json(json.dumps(body))
    names = {field.alias or name for name, field in model.model_fields.items()} - set(body)
    assert len(names) > 3
    for name in names:
        assert model.model_validate_json(json.dumps(body | {name: None})) == plain, name
    assert model.model_validate_json(json.dumps(body | dict.fromkeys(names))) == plain


DOCUMENTED = (
    "audio function_call functions modalities moderation prediction prompt_cache_retention reasoning_effort "
    "verbosity web_search_options"
)


def test_what_openai_documents_may_be_null() -> None:
    body = {"model": "m", **MESSAGES, **dict.fromkeys(DOCUMENTED.split())}
    ChatCompletionRequest.model_validate_json(json.dumps(body))


NESTED: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (OpenAICompletionRequest, {"stream": True, "stream_options": {"include_usage": None}}),
    (OpenAICompletionRequest, {"stream_options": {"include_usage": None, "continuous_usage_stats": None}}),
    (CompletionRequest, {"generation_config": {"n": None, "stop": None, "temperature": None}}),
    (
        ChatCompletionRequest,
        {"tools": [{"type": "function", "function": {"name": "f", "strict": None, "description": None}}]},
    ),
    (ChatCompletionRequest, {"messages": [{"role": "user", "content": "x", "name": None}]}),
    (ResponsesRequest, {"reasoning": {"effort": None}, "text": {"format": None, "verbosity": None}}),
    (ResponsesRequest, {"stream_options": {"include_obfuscation": None}}),
    (MessagesRequest, {"metadata": {"user_id": None}}),
]


@pytest.mark.parametrize(("model", "fields"), NESTED)
def test_null_within_an_object_is_as_well(model: type[BaseModel], fields: dict[str, Any]) -> None:
    model.model_validate_json(json.dumps(dict(BODIES)[model] | fields))


HARMLESS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ChatCompletionRequest, {"modalities": ["text"], "function_call": "none", "functions": []}),
    (ChatCompletionRequest, {"add_generation_prompt": True, "continue_final_message": False}),
    (ChatCompletionRequest, {"verbosity": "medium", "tools": [], "tool_choice": "auto"}),
    (ChatCompletionRequest, {"logprobs": False, "top_logprobs": 0, "add_special_tokens": False}),
    (OpenAICompletionRequest, {"stream_options": {}, "skip_special_tokens": True}),
    (OpenAICompletionRequest, {"stream_options": {"include_usage": False, "include_obfuscation": False}}),
    (OpenAICompletionRequest, {"use_beam_search": False, "include_stop_str_in_output": False}),
    (OpenAICompletionRequest, {"spaces_between_special_tokens": True, "add_special_tokens": True}),
    (OpenAICompletionRequest, {"return_tokens_as_token_ids": False, "prompt_embeds": None}),
    (ChatCompletionRequest, {"echo": False, "include_reasoning": True, "mm_processor_kwargs": None}),
    (ChatCompletionRequest, {"logits_processors": None, "kv_transfer_params": None, "vllm_xargs": None}),
    (ChatCompletionRequest, {"max_tokens": 5, "max_completion_tokens": 5}),
    (OpenAICompletionRequest, {"suffix": "", "echo": False, "best_of": 1, "logit_bias": {}}),
    (ResponsesRequest, {"stream_options": {}, "background": False, "include": [], "text": {}}),
]


@pytest.mark.parametrize(("model", "fields"), HARMLESS)
def test_defaults_may_be_said(model: type[BaseModel], fields: dict[str, Any]) -> None:
    model.model_validate_json(json.dumps(dict(BODIES)[model] | fields))


NUMBERS: list[tuple[type[BaseModel], dict[str, Any], dict[str, Any]]] = [
    (OpenAICompletionRequest, {"max_tokens": 3.0, "n": 2.0, "logprobs": 1.0}, {"max_tokens": 3, "n": 2}),
    (OpenAICompletionRequest, {"seed": -7.0, "top_k": -1.0, "priority": 1e1}, {"seed": -7, "priority": 10}),
    (ChatCompletionRequest, {"max_completion_tokens": 3.0, "min_tokens": 0.0}, {"max_completion_tokens": 3}),
    (ResponsesRequest, {"max_output_tokens": 1e2}, {"max_output_tokens": 100}),
    (MessagesRequest, {"max_tokens": 3000.0, "top_k": 5.0}, {"max_tokens": 3000, "top_k": 5}),
]


@pytest.mark.parametrize(("model", "fields", "read"), NUMBERS)
def test_whole_numbers_may_have_a_point(
    model: type[BaseModel], fields: dict[str, Any], read: dict[str, Any]
) -> None:
    request = model.model_validate_json(json.dumps(dict(BODIES)[model] | fields))
    for name, value in read.items():
        assert getattr(request, name) == value and type(getattr(request, name)) is int


def test_whole_numbers_within_objects_may_as_well() -> None:
    text = '{"model": "m", "prompt": "x", "generation_config": {"max_new_tokens": 3.0, "temperature": 1}}'
    config = CompletionRequest.model_validate_json(text).generation_config
    assert (config.max_new_tokens, type(config.max_new_tokens)) == (3, int)
    text = json.dumps(
        dict(BODIES)[MessagesRequest]
        | {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024.0}}
    )
    thinking = MessagesRequest.model_validate_json(text).thinking
    assert thinking is not None and type(thinking.budget_tokens) is int


def test_every_object_of_a_request_is_a_body() -> None:
    """So that a new one does not forget it."""

    def parts(annotation: Any) -> set[Any]:
        found = {annotation} if isinstance(annotation, type) else set()
        return found.union(*map(parts, get_args(annotation)))

    seen: set[Any] = set()
    left = [model for model, _ in BODIES]
    while left:
        model = left.pop()
        if model in seen:
            continue
        seen.add(model)
        for field in model.model_fields.values():
            left += [p for p in parts(field.annotation) if isinstance(p, type) and issubclass(p, BaseModel)]
    others = {model.__name__ for model in seen if not issubclass(model, Body | GenerationConfig)}
    assert others <= {"Resume", "ResumedChoice", "StructuredOutputs", *WITHOUT_OPTIONS}


WITHOUT_OPTIONS = {
    *("NamedChoice", "NamedFunction", "ResponseNamedChoice", "MessageParam"),
    *("ResponseFormat", "NamedSchema", "TextFormat"),
}
"""All of their fields are required, or they belong to the forms of answers, whose fields may be null."""


@pytest.mark.parametrize(("n", "beams", "temperature", "drawn"), [(2, None, 0, True), (3, 4, 0, False)])
def test_several_greedy_answers(n: int, beams: int | None, temperature: float, drawn: bool) -> None:
    body = {"n": n, "num_beams": beams, "temperature": temperature, "top_p": 0.5, "min_p": 0.1}
    request = OpenAICompletionRequest.model_validate(dict(BODIES)[OpenAICompletionRequest] | body)
    config = request.generation_config(5, None)
    assert config.num_choices == n and config.do_sample is drawn
    if drawn:
        assert (config.top_k, config.top_p, config.min_p, config.typical_p) == (1, 1.0, 0.0, 1.0)
