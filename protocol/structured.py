"""What the text of an answer must be."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from protocol.body import Body
from protocol.errors import FieldError

OLD_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
"""What vLLM called the forms of an answer until its version 0.12."""

MAX_FORM_BYTES = 256 * 1024
"""Of a schema, an expression or a grammar."""

JsonSchema = dict[str, Any] | bool


class StructuredOutputs(Body):
    """The form of an answer: exactly one of these, named as in vLLM.

    Attributes:
        json_schema: under the name ``json``: a JSON schema (draft 2020-12), as an object or as its text.
        json_object: any JSON object.
        regex: a regular expression that the whole answer matches (the syntax of Rust's ``regex`` crate).
        choice: the answer is one of these texts.
        grammar: a context-free grammar in llguidance's dialect of Lark.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)

    json_schema: JsonSchema | None = Field(None, alias="json")
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None

    @field_validator("json_schema", mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if len(value) > MAX_FORM_BYTES:  # nothing else of the process runs while such a text is read
            raise ValueError(f"{len(value)} characters exceed the {MAX_FORM_BYTES} that a schema may have")
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the text is not JSON: {error}") from None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            names = "json, json_object, regex, choice, grammar"
            raise ValueError(f"exactly one of {names} must be set, got {len(given)}")
        return self


class AnswerFormat(Body):
    """The form of an answer as OpenAI's routes ask for it; each has the schema in a field of its own.

    A schema is followed whether or not it is `strict`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_field: ClassVar[str]
    type: Literal["text", "json_object", "json_schema"]

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The schema that comes with the type ``json_schema``."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _check_schema(self) -> Self:
        if self.type == "json_schema" and self.schema_of_answer is None:
            raise FieldError(self.schema_field, "is required with the type json_schema")
        if self.type != "json_schema" and self.schema_of_answer is not None:
            raise FieldError(self.schema_field, f"cannot be combined with the type {self.type}")
        return self

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """What the text of the answer must be; None: any text."""
        return {"type": "object"} if self.type == "json_object" else self.schema_of_answer


def check_old_names(body: Any) -> Any:
    """`body` without old names that are null; one that is set is refused.

    Raises:
        FieldError: it does; the message has the new name.
    """
    if not isinstance(body, dict):
        return body
    for old, new in OLD_NAMES.items():
        if body.get(old) is not None:
            raise FieldError(old, f"is called structured_outputs.{new} now")
    return {name: value for name, value in body.items() if name not in OLD_NAMES}
