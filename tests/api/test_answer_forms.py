"""What requests insist on about the form of an answer reaches the sampler as a grammar."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.api.app import create_app
from server.text.grammars.compiler import GrammarCompiler, GrammarTokens
from tests.api.chats import BODIES, answering_service, ask
from tests.serving import serving

CHAT, RESPONSES, MESSAGES = BODIES
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
STRICT = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TWO = f"{CALL}\n{CALL}"
TEXT = '{"answer": 42}'

FORMS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    # route, fields, answers that have the form, answers that have not
    (CHAT, {"response_format": {"type": "json_object"}}, ["{}", TEXT, CALL], ["[]", "42", "no"]),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        [TEXT, f"<think>Hm {{</think>\n\n{TEXT}", TWO],
        ["{}", '{"answer": "42"}', f"So: {TEXT}"],
    ),
    (CHAT, {"tool_choice": "required"}, [CALL, TWO, f"<think>\n?\n</think>\n\n{CALL}"], [TEXT, "no"]),
    (CHAT, {"tool_choice": "required", "parallel_tool_calls": False}, [CALL], [TWO, "no"]),
    (CHAT, {"tool_choice": NAMED}, [CALL], [TWO, CALL.replace("get_weather", "other")]),
    (
        CHAT,
        {"tools": [{"type": "function", "function": STRICT}]},
        ["no", f"Let me see.\n{CALL}"],
        [CALL.replace("{", "[", 1), f"Let me see.\n{CALL.replace('arguments', 'args')}"],
    ),
    (RESPONSES, {"tool_choice": "required"}, [CALL, TWO], [TEXT]),
    (
        RESPONSES,
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
        [TEXT],
        ["{}", "no"],
    ),
    (MESSAGES, {"tool_choice": {"type": "any"}}, [CALL, TWO], [TEXT]),
    (MESSAGES, {"tool_choice": {"type": "tool", "name": "get_weather"}}, [CALL], [TWO]),
]


@pytest.mark.parametrize(("route", "fields", "right", "wrong"), FORMS)
async def test_answers_that_the_form_allows(
    tmp_path: Path, route: str, fields: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    service = answering_service(tmp_path)
    with serving(create_app(service)) as url:
        await ask(url, route, BODIES[route] | fields)
    (job,) = service.jobs
    form = job.config.structured_outputs
    assert form is not None
    tokenizer = service.tokenizer
    (end,) = tokenizer.encode("<|im_end|>", special=False)
    grammar = GrammarCompiler(GrammarTokens.of(tokenizer.hf), len(tokenizer.hf), [end]).compile(
        form.model_dump(), [end]
    )

    def has_form(text: str) -> bool:
        tokens = tokenizer.encode(text, special=False)
        state = grammar.begin()
        if state.accepted(tokens) < len(tokens):
            return False
        state.advance(tokens)
        return state.may_end

    assert [text for text in right if not has_form(text)] == []
    assert [text for text in wrong if has_form(text)] == []


async def test_forms_of_plain_text(tmp_path: Path) -> None:
    """As vLLM has them, on every route that takes options of sampling."""
    service = answering_service(tmp_path)
    form = {"json": json.dumps(SCHEMA)}
    with serving(create_app(service)) as url:
        await ask(url, CHAT, BODIES[CHAT] | {"structured_outputs": form})
        await ask(url, "/v1/completions", {"model": "fake", "prompt": "x", "structured_outputs": form})
        native = {"model": "fake", "prompt": "x", "generation_config": {"structured_outputs": form}}
        await ask(url, "/completion/v2", native)
    for job in service.jobs:
        assert job.config.structured_outputs is not None
        grammar = job.config.structured_outputs.grammar
        assert grammar is not None and f"%json {json.dumps(SCHEMA)[:-1]}" in grammar
