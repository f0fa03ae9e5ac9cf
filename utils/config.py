"""Configuration files: JSON as people write it, checked against a pydantic model.

A file may hold `#` comments and trailing commas (it is read as YAML, of which JSON is a part).
Whatever is wrong with it becomes a `ConfigError` of one line that says where and what is accepted.

Paths in a file are relative to the file, not to where the service was started: use `ModelPath` (a model
directory, a GGUF file, or a name on a hub) or `TokenizerPath` as field types.
Keys, passwords and tokens are `Secret`s. Models derive from `ConfigModel`.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import PydanticCustomError

from utils.addresses import redacted
from utils.not_json import explain

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)

_DIRECTORY = "directory"  # key of the validation context
_PLAIN_TAGS = [f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str")]
_CONTAINERS = {"model_type": "an object", "list_type": "a list", "tuple_type": "a list"}
_SURROGATE = re.compile("[\ud800-\udfff]")  # of text that could not be written down anywhere
_HUB_NAME = re.compile(r"(modelscope:)?[\w.-]+/[\w.-]+|[\w.-]+/[\w.-]+/[\w./-]+\.gguf|[a-z0-9][a-z0-9.-]*")
"""A model, a GGUF file of one, or one of the oldest models, which have no owner and small letters."""


class ConfigError(Exception):
    """A configuration that cannot be used; the message is one line for the person who wrote it."""


class ConfigModel(BaseModel):
    """Base of every configuration section: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _true_is_no_number(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        checked = check(value)
        if isinstance(value, bool) and not isinstance(checked, bool):  # pydantic takes it for 1
            raise PydanticCustomError("number", "a number")
        return checked


def _resolve_secret(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("secret", "a secret is a non-empty string or 'env:NAME'")
    if not value.startswith("env:"):
        return value
    name = value.removeprefix("env:")
    if not os.environ.get(name):
        raise PydanticCustomError("secret", f"the environment variable {name!r} is not set")
    return os.environ[name]


Secret = Annotated[SecretStr, BeforeValidator(_resolve_secret)]
"""A string, or ``env:NAME`` for the value of an environment variable; never shown when printed,
logged or dumped. Its text is `get_secret_value()`."""


def resolve_path(path: str, info: ValidationInfo) -> str:
    """`path` against the directory of the file that holds it (else the working directory)."""
    directory = (info.context or {}).get(_DIRECTORY) or Path.cwd()  # which may be gone
    return os.path.normpath(os.path.join(directory, os.path.expanduser(path)))


@dataclass(frozen=True)
class _Checkpoint:
    """Validates the path of a directory that holds `file`, of a GGUF file, or a hub name."""

    file: str | None = None

    def __call__(self, value: str, info: ValidationInfo) -> str:
        path = resolve_path(value, info)
        if not os.path.exists(path):
            if not value.startswith((".", "~")) and _HUB_NAME.fullmatch(value):
                return value
            problem = "does not exist"
        elif os.path.isfile(path):
            if path.endswith(".gguf"):
                return path
            problem = "is not a directory"
        elif self.file and not os.path.isfile(os.path.join(path, self.file)):
            problem = f"holds no {self.file}"
        else:
            return path
        kind = "a model directory" if self.file else "a directory"
        raise PydanticCustomError("path", f"{kind} ({path} {problem}), a GGUF file or a hub name")


ModelPath = Annotated[str, AfterValidator(_Checkpoint("config.json"))]
"""The absolute path of a directory that holds a model or of a GGUF file, or a hub name (``name``,
``owner/name``, ``owner/name/file.gguf``, ``modelscope:owner/name``)."""

TokenizerPath = Annotated[str, AfterValidator(_Checkpoint())]
"""The same for a tokenizer alone."""


def load_config(path: str | Path, model: type[Model]) -> Model:
    """Read the file at `path` as a `model`.

    Args:
        path: a JSON file, comments and trailing commas allowed.
        model: a `ConfigModel`, whose fields may be models in turn.

    Raises:
        ConfigError: the file cannot be read or parsed, or a key or value is not accepted.
    """
    document = _Document.read(Path(path))
    try:
        context = {_DIRECTORY: document.path.absolute().parent}
        return model.model_validate(document.value, context=context)
    except ValidationError as error:
        # urls and contexts are noise here, and the input could hold a secret
        problems = error.errors(include_url=False, include_context=False)
        # a misspelt key is also a missing one; its name says more
        first = min(problems, key=lambda p: (p["type"] != "extra_forbidden", document.line(p["loc"])))
        raise ConfigError(_explain(document, model, dict(first))) from None


def read_file(path: str | Path) -> Any:
    """The content of a configuration file as plain values, unchecked.

    Raises:
        ConfigError: the file cannot be read or parsed.
    """
    return _Document.read(Path(path)).value


class _Loader(yaml.BaseLoader):
    """YAML without what JSON has no notion of and a few bytes of which build an endless document."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if event.anchor is not None:  # of the node itself, or the one that an alias refers to
            raise yaml.composer.ComposerError(None, None, f"anchor {event.anchor!r}", event.start_mark)
        return super().compose_node(parent, index)


@dataclass
class _Document:
    """A parsed file that remembers on which line each key and item stands."""

    path: Path
    text: str
    value: Any = None
    lines: dict[Location, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _Document:
        try:
            # YAML allows no tabs between tokens, JSON no raw tabs within strings
            document = cls(path, path.read_text(encoding="utf-8-sig").replace("\t", " "))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
        try:
            document.value = document._build(yaml.compose(document.text, _Loader), ())
        except RecursionError:
            raise ConfigError(f"{path}: not valid JSON: nested too deeply") from None
        except yaml.MarkedYAMLError as error:
            raise ConfigError(f"{path}:{explain(document.text, error)}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid JSON: {str(error).splitlines()[0]}") from None
        return document

    def _build(self, node: yaml.Node | None, at: Location) -> Any:
        if node is None:
            return None
        line = node.start_mark.line + 1
        self.lines.setdefault(at, line)
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(f"{self.path}:{line}: not valid JSON: tag {node.tag!r}")
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, (*at, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(self._scalar(key_node)), key_node.start_mark.line + 1
            if key in mapping:
                first = self.lines[*at, key]
                raise ConfigError(
                    f"{self.path}:{line}: duplicate key {_dotted((*at, key))!r} (first on line {first})"
                )
            self.lines[*at, key] = line
            mapping[key] = self._build(value_node, (*at, key))
        return mapping

    def _scalar(self, node: yaml.Node) -> Any:
        """A string, number, boolean or null as JSON reads it; a bare word is a string."""
        written = self.text[node.start_mark.index : node.end_mark.index]
        where = f"{self.path}:{node.start_mark.line + 1}: not valid JSON:"
        if not written:
            raise ConfigError(f"{where} a value is missing")
        try:
            value = json.loads(written, strict=False)
        except ValueError:
            return node.value
        if isinstance(value, str) and _SURROGATE.search(value):
            raise ConfigError(f"{where} half of a surrogate pair")
        return value

    def line(self, loc: Location) -> int:
        """The line of the innermost part of `loc` that stands in the file."""
        return self.lines.get(self.known(loc), 1)

    def known(self, loc: Location) -> Location:
        """`loc` without what is not of the file (names of union members, missing keys)."""
        at: Location = ()
        for part in loc:
            if (*at, part) in self.lines:
                at = (*at, part)
        return at


def _explain(document: _Document, model: type[BaseModel], problem: Mapping[str, Any]) -> str:
    """One line for one entry of `ValidationError.errors()`."""
    loc, kind = problem["loc"], problem["type"]
    where = f"{document.path}:{document.line(loc)}: "
    if kind == "extra_forbidden":
        names = list(_model_at(model, loc).model_fields)
        near = difflib.get_close_matches(str(loc[-1]), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}unknown key {_dotted(loc)!r}; {hint}accepted: {', '.join(names)}"
    if kind == "missing":
        return f"{where}key {_dotted(loc)!r} is missing"
    reason = str(problem["msg"]).removeprefix("Value error, ").replace("\n", " ")
    accepted = reason.removeprefix("Input should be ")
    key = _dotted(document.known(loc)) or "the file"
    if kind == "secret":  # what was found is not for the log
        return f"{where}{key}: {accepted}"
    if kind == "value_error":  # says what is wrong in its own words
        return f"{where}{key}: {reason}"
    found = problem.get("input")
    if kind in _CONTAINERS:  # may be a secret out of place: only its kind is shown
        return f"{where}{key}: found {_kind(found)}, accepted: {_CONTAINERS[kind]}"
    return f"{where}{key}: found {_show(found)}, accepted: {accepted}"


def _model_at(model: type[BaseModel], loc: Location) -> type[BaseModel]:
    """The model that holds the key named by the last part of `loc`."""
    for part in loc[:-1]:
        if part in model.model_fields:
            model = next(_models_in(model.model_fields[str(part)].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _dotted(loc: Location) -> str:
    """``("a", 0, "b")`` as ``a[0].b``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def _kind(value: Any) -> str:
    kinds = {str: "a string", dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


def _show(value: Any) -> str:
    """A value as JSON would write it; containers by kind only (they may hold secrets)."""
    if isinstance(value, dict | list):
        return _kind(value)
    if isinstance(value, str) and "://" in value:
        value = redacted(value)
    return json.dumps(value, ensure_ascii=False, default=str)
