"""What the bodies of all requests share: how JSON's nulls and numbers are taken."""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema

from protocol.errors import FieldError

Schema = TypeVar("Schema")


def failing_fast(schema: Schema) -> Schema:
    """A pydantic-core `schema`, changed so that every list in it ends at its first fault."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            failing_fast(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            failing_fast(part)
    return schema


class Body(BaseModel):
    """A request, or an object within one.

    A field that is null is as if it were left out. JSON has one kind of number, so that ``3.0`` is a whole
    one where a whole one is wanted. Of the faults in a list, or of unknown names, only the first is told:
    to describe each of them would take longer than to read all.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return failing_fast(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _take_as_json(cls, data: Any) -> Any:
        return take_as_json(cls, data)


def take_as_json(model: type[BaseModel], data: Any) -> Any:
    """`data`, from which a `model` is to be made, as `Body` says."""
    if not isinstance(data, dict):
        return data
    names, whole = _fields_of(model)
    if len(data) > len(names):
        unknown = next(name for name in data if name not in names)
        data = {name: value for name, value in data.items() if name in names or name == unknown}
    nulls = [name for name, value in data.items() if value is None and name in names]
    numbers = {name: as_whole(data[name]) for name in whole if type(data.get(name)) is float}
    if not nulls and not numbers:
        return data
    data = data | numbers
    for name in nulls:
        del data[name]
    return data


def check_type(data: Any, accepted: Container[str], reason: str = "") -> Any:
    """`data`, from which an object is to be made, if its ``type`` is none or one of those `accepted`.

    pydantic's own error for another type lists fields of all types and does not say what is served.

    Raises:
        FieldError: the type is another; names it, and gives the `reason`.
    """
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind not in accepted:
        raise FieldError("type", f"{kind!r} is not supported" + (reason and f": {reason}"))
    return data


def as_whole(value: Any) -> Any:
    """`value`, which is from JSON, as an integer where it is a whole number."""
    return int(value) if type(value) is float and value.is_integer() else value


@cache
def _fields_of(model: type[BaseModel]) -> tuple[frozenset[str], frozenset[str]]:
    """The names of all fields, as requests have them, and of those that are whole numbers."""
    names = {field.alias or name: field for name, field in model.model_fields.items()}
    whole = {name for name, field in names.items() if _is_whole(field.annotation)}
    return frozenset(names), frozenset(whole)


def _is_whole(annotation: Any) -> bool:
    """Whether values of this type are integers and no other numbers."""
    kinds = set(_members(annotation))
    return int in kinds and float not in kinds


def _members(annotation: Any) -> list[Any]:
    """The types of a union, without what is annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _members(part)]
    return [] if annotation is NoneType or origin is Literal else [annotation]
