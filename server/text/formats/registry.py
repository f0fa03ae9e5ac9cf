"""All formats, and which of them a checkpoint declares."""

from __future__ import annotations

from server.text.formats import (
    deepseek,
    glm,
    harmony,
    hermes,
    llama3_json,
    mistral,
    pythonic,
    qwen3_coder,
    think,
)
from server.text.formats.syntax import Format

AUTO = "auto"
"""As the checkpoint declares."""
NONE = "none"
"""Answers are plain text: nothing is looked for in them."""

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        # a template is tried against them in this order: the more telling markers first
        harmony,
        qwen3_coder,
        glm,
        deepseek,
        mistral,
        hermes,
        llama3_json,
        pythonic,
        think,
    )
}

NAMES = (AUTO, NONE, *FORMATS)


def declared_format(template: str) -> Format | None:
    """The format of which all marks stand in a chat template."""
    for candidate in FORMATS.values():
        if all(mark in template for mark in candidate.declared_by):
            return candidate
    return None
