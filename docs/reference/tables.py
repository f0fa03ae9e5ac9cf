"""Tables of configuration keys, request options and command lines, from the schemas that check them."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

import start_app
from client.config import ApiKey, EngineServer, GatewayConfig, OpenAIJumperConfig
from protocol.completion import CompletionRequest
from protocol.generation import GenerationConfig
from server.continuous_batching.config import ServerConfig as CbServerConfig
from server.static_batching.config import ServerConfig as SbServerConfig
from utils.fleet import FleetConfig
from utils.vllm import VllmConfig

ROOT = Path(__file__).resolve().parents[2]
NOTES = Path(__file__).with_name("notes.yaml")
MODELS: dict[str, type[BaseModel]] = {
    "client_config.json": GatewayConfig,
    "cb_server_config.json": CbServerConfig,
    "sb_server_config.json": SbServerConfig,
    "vllm_config.json": VllmConfig,
    "fleet.json": FleetConfig,
    "completion": CompletionRequest,
    "generation_config": GenerationConfig,
}
LISTED_APART = (OpenAIJumperConfig, ApiKey, EngineServer, GenerationConfig)
"""Models that are values of a key, not sections of a file."""
WORDS = {
    "en": {
        "heads": ("key", "accepted", "default", "meaning"),
        "options": ("option", "default", "meaning"),
        "required": "required",
        **{kind: kind for kind in ("integer", "number", "text", "secret", "object")},
        "list": "list{1}: {0}",
        "and": "{} and {}",
    },
    "zh": {
        "heads": ("配置项", "取值", "默认值", "含义"),
        "options": ("选项", "默认值", "含义"),
        "required": "必填",
        "integer": "整数",
        "number": "数值",
        "text": "字符串",
        "secret": "密钥",
        "object": "对象",
        "list": "列表{1}：{0}",
        "and": "{}，且 {}",
    },
}


def table_of(name: str, language: str) -> str:
    """The Markdown table of a configuration file, a request or `start_app.py`."""
    rows = _arguments(language) if name == "start_app.py" else _keys(name, MODELS[name], language)
    heads = WORDS[language]["options" if name == "start_app.py" else "heads"]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line).rstrip() + " |" for line in lines)


def _keys(name: str, model: type[BaseModel], language: str, section: str = "") -> Iterator[list[str]]:
    """[key, accepted, default, meaning] of each key, sections before their keys."""
    schema = model.model_json_schema()
    for name_in_code, field in model.model_fields.items():
        key = field.alias or name_in_code
        shape = schema["properties"].get(key)
        if shape is None:  # for gateways alone
            continue
        inner = next(_models_in(field.annotation), None)
        told = note(name, section + key, language, lambda key=key: docstring(model, key))
        mark = "· " if section else ""
        if inner is not None and inner not in LISTED_APART:
            yield [f"`{key}`", "", "", told]
            yield from _keys(name, inner, language, f"{key}.")
            continue
        default = WORDS[language]["required"] if field.is_required() else f"`{_shown(field.default)}`"
        accepted = _registered(model, key) or _accepted(shape, WORDS[language])
        yield [f"{mark}`{key}`", accepted, default, told]


def _arguments(language: str) -> Iterator[list[str]]:
    """[option, default, meaning] of each option of `start_app.py`."""
    for action in start_app.build_parser()._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[0].removeprefix("--")
        told = note("start_app.py", name, language, lambda action=action: action.help)
        default = "" if action.default is None or action.default is False else f"`{_path(action.default)}`"
        yield [f"`--{name}`", default, told]


def _path(value: Any) -> str:
    """A default as it is typed: paths within the project from its root."""
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def notes() -> dict[str, dict[str, dict[str, str]]]:
    """Section → key → language → meaning."""
    return yaml.safe_load(NOTES.read_text(encoding="utf-8"))


def note(section: str, key: str, language: str, otherwise: Callable[[], str | None]) -> str:
    """The meaning of a key: its note, or what its schema says.

    Raises:
        LookupError: neither says anything.
    """
    found = notes()
    last = key.rpartition(".")[2]
    for place, name in ((section, key), ("shared", key), ("shared", last)):
        if name in found.get(place, {}):
            return found[place][name][language]
    text = otherwise()
    if not text:
        raise LookupError(f"{NOTES.name} has no entry {key!r} under {section!r}, and the schema says nothing")
    return text


def docstring(model: type[BaseModel], key: str) -> str | None:
    """The description of a field, or the string literal below it in its class."""
    if described := model.model_fields[key].description:
        return described
    for owner in model.__mro__:
        if key not in vars(owner).get("__annotations__", {}):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            named = isinstance(field, ast.AnnAssign) and getattr(field.target, "id", None) == key
            if named and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                return " ".join(str(below.value.value).split())
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _registered(model: type[BaseModel], key: str) -> str | None:
    """The names that a key accepts where they are those of a registry; None elsewhere."""
    try:
        model.model_validate({key: "\0"})
    except ValidationError as error:
        for problem in error.errors():
            names = problem.get("ctx", {}).get("accepted") or problem.get("ctx", {}).get("names")
            if problem["loc"] == (key,) and names:
                listed = ", ".join(f"`{name.strip(chr(39))}`" for name in names.split(", "))
                nullable = model.model_fields[key].default is None
                return f"{listed}, `null`" if nullable else listed
    return None


def _accepted(shape: dict[str, Any], words: Any) -> str:
    """What a JSON schema accepts, in words."""
    if "anyOf" in shape:
        return ", ".join(dict.fromkeys(_accepted(each, words) for each in shape["anyOf"]))
    if "enum" in shape:
        return ", ".join(f"`{_word(value)}`" for value in shape["enum"])
    if "const" in shape:
        return f"`{_word(shape['const'])}`"
    kind = shape.get("type", "object")
    if kind == "array":
        return words["list"].format(_accepted(shape["items"], words), _size(shape, "Items"))
    if kind == "string":
        secret = shape.get("format") == "password"
        return words["secret"] if secret else words["text"] + _size(shape, "Length")
    if kind in ("boolean", "null"):
        return {"boolean": "`true`, `false`", "null": "`null`"}[kind]
    return " ".join(filter(None, [words[kind], _bounds(shape, words)]))


def _word(value: Any) -> str:
    """A value as JSON has it, texts without their quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def _size(shape: dict[str, Any], of: str) -> str:
    """How many items or characters there may be, as in `` (1–16)``."""
    least, most = shape.get(f"min{of}"), shape.get(f"max{of}")
    if least is None and most is None:
        return ""
    return f" ({least or 0}–{most})" if most is not None else f" (≥ {least})"


def _bounds(shape: dict[str, Any], words: Any) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {_number(shape[name])}" for name, sign in signs.items() if name in shape]
    return words["and"].format(*found) if len(found) == 2 else "".join(found)


def _number(value: float) -> str:
    powers = {2**31: "2³¹", 2**63: "2⁶³"}
    return powers.get(int(value), f"{value:g}")


def _shown(default: Any) -> str:
    """A default as JSON has it."""
    if isinstance(default, BaseModel):
        return "{}"
    if isinstance(default, float):
        return f"{default:g}"
    return json.dumps(default, ensure_ascii=False)
