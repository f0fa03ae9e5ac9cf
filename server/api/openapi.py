"""The OpenAPI document of routes that parse their bodies themselves.

The completion routes read the body with ``model_validate_json`` (one parse, any content type), so
FastAPI does not see their models; `document_body` and `add_schemas` put them into the document.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"


def document_body(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of a route that takes a `model` as JSON."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def add_schemas(app: FastAPI, *models: type[BaseModel]) -> None:
    """Add `models` to the components of the app's OpenAPI document."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema([(m, "validation") for m in models], ref_template=_REF)
            schemas = build().setdefault("components", {}).setdefault("schemas", {})
            for name, schema in definitions["$defs"].items():
                schemas.setdefault(name, schema)
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
