"""Which format the answers of a checkpoint are read by, and a parser for each answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from server.text.formats.declared import DeclaredParser
from server.text.formats.parser import AnswerParser, OutputParser
from server.text.formats.registry import AUTO, FORMATS, NONE, declared_format
from server.text.formats.syntax import Format
from server.text.formats.tool_types import Tools

RESPONSE_TEMPLATE = "response_template"

_PLAIN = Format(name=NONE, declared_by=())


@dataclass(frozen=True, slots=True)
class AnswerTools:
    """The tools that an answer may call."""

    definitions: list[dict[str, Any]] = field(default_factory=list)
    """As a chat template gets them; empty: calls are not looked for."""
    single: bool = False
    """At most one call."""

    @property
    def schemas(self) -> Tools:
        functions = [definition["function"] for definition in self.definitions]
        return Tools({function["name"]: function.get("parameters") or {} for function in functions})


@dataclass(frozen=True, slots=True)
class ChosenFormat:
    """How answers are read, and why so."""

    format: Format
    reason: str
    response_template: Any = None
    """The checkpoint's own description, which is used where there is one."""

    @property
    def name(self) -> str:
        return RESPONSE_TEMPLATE if self.response_template is not None else self.format.name

    @property
    def told(self) -> dict[str, str]:
        """For ``/status``."""
        return {"name": self.name, "reason": self.reason}

    @property
    def reads_calls(self) -> bool:
        """Whether tool calls can be separated from text."""
        return self.response_template is not None or self.format.calls is not None

    @property
    def reads_reasoning(self) -> bool:
        return self.response_template is not None or self.format.thinking is not None

    def markers(self, tools: AnswerTools) -> str | None:
        """All markers that count in an answer, as one text; None where every special token may be one."""
        if self.response_template is not None:
            return None
        chosen, calls = self.format, self.format.calls
        found = list(chosen.noise)
        if chosen.thinking is not None:
            found += [chosen.thinking.open, chosen.thinking.close]
        if calls is not None and tools.definitions:
            found += [*calls.opens, *calls.closes, *calls.sections, *chosen.inner]
        return "\n".join(found)

    def opens_reasoning(self, prompt: str, continued: str | None = None) -> bool:
        """Whether a prompt ends within reasoning, which the template or the client began.

        Args:
            continued: the beginning of the answer that the prompt ends with.
        """
        thinking = self.format.thinking
        if thinking is None:
            return False
        if continued is None:
            return prompt.rstrip().endswith(thinking.open)
        return continued.rfind(thinking.open) > continued.rfind(thinking.close)

    def parser(self, prompt: str, tools: AnswerTools, *, continued: str | None = None) -> AnswerParser | None:
        """A parser for one answer; None where answers are plain text.

        Args:
            prompt: the conversation as the model sees it.
            tools: those that may be called.
            continued: the beginning of the answer that the prompt ends with.
        """
        if self.response_template is not None:
            return DeclaredParser(
                self.response_template, prompt, tools.schemas, tools.definitions, single=tools.single
            )
        thinking = self.format.thinking
        in_reasoning = self.opens_reasoning(prompt, continued)
        calls = self.format.calls if tools.definitions else None
        if thinking is None and calls is None and not self.format.noise:
            return None
        return OutputParser(
            thinking,
            calls,
            self.format.noise,
            tools.schemas,
            in_reasoning=in_reasoning,
            single=tools.single,
        )


def choose_format(templates: Mapping[str, str], response_template: Any, configured: str) -> ChosenFormat:
    """The format of a checkpoint.

    Args:
        templates: its chat templates by name; most have one or none.
        response_template: its own description of its answers, or None.
        configured: one of `registry.NAMES`.
    """
    if configured == NONE:
        return ChosenFormat(_PLAIN, "configured")
    if configured != AUTO:
        return ChosenFormat(FORMATS[configured], "configured")
    if response_template is not None:
        return ChosenFormat(_PLAIN, "the checkpoint's own", response_template)
    template = "\n".join(templates.values())
    found = declared_format(template)
    if found is None:
        return ChosenFormat(_PLAIN, "the chat template shows no known format")
    thinking = found.thinking
    if thinking is not None and thinking.open not in template and thinking.close not in template:
        found = replace(found, thinking=None)
    marks = ", ".join(found.declared_by)
    return ChosenFormat(found, f"the chat template has {marks}")
