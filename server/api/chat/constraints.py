"""What a request insists on about the form of its answer, as a grammar that the sampler follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from protocol.errors import ApiError, unprocessable
from protocol.structured import StructuredOutputs
from server.text.formats.chosen import AnswerTools
from server.text.formats.grammar import AnswerForm, FormTool, GrammarWriter
from server.text.formats.syntax import CallWriting
from server.text.grammars.source import GrammarError
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Constraints:
    """What the answer must be."""

    call: bool = False
    """It must call a tool."""
    tool: str | None = None
    """It must call this one."""
    strict: tuple[tuple[str, str], ...] = ()
    """Tools whose arguments must follow their schema: the field that says so, and the name."""
    text: dict[str, Any] | None = None
    """Its text must be JSON of this schema."""

    def field(self, name: Callable[[str], str]) -> str | None:
        """The field that asks for a form, which errors name; None where there is none.

        Args:
            name: what the API calls a field of ``/v1/chat/completions``.
        """
        if self.call or self.tool is not None:
            return name("tool_choice")
        if self.text is not None:
            return name("response_format")
        return self.strict[0][0] if self.strict else None


def answer_form(
    constraints: Constraints,
    tools: AnswerTools,
    tokenizer: Tokenizer,
    where: str,
    *,
    in_reasoning: bool,
) -> StructuredOutputs:
    """The form of an answer as an option of sampling.

    Args:
        constraints: some are set.
        tools: that may be called.
        where: the field that asks for it.
        in_reasoning: the prompt has opened reasoning.

    Raises:
        ApiError: it cannot be honoured; names `where`.
    """
    chosen, strict = tokenizer.answer_format, {name for _, name in constraints.strict}
    functions = [definition["function"] for definition in tools.definitions]
    offered = [
        FormTool(function["name"], function.get("parameters") or {}, function["name"] in strict)
        for function in functions
        if constraints.tool in (None, function["name"])
    ]
    if constraints.tool is not None and not offered:
        raise _refused(where, f"there is no tool {constraints.tool!r}")
    form = AnswerForm(
        offered,
        must_call=constraints.call or constraints.tool is not None,
        single=tools.single or constraints.tool is not None,
        schema=constraints.text,
        in_reasoning=in_reasoning,
    )
    if chosen.response_template is not None or (chosen.format.writings == () and offered):
        problem = f"the grammar of this model's answers is not known ('chat_format' is {chosen.name})"
        raise _refused(where, problem)
    writing = _writing(tokenizer) if offered else None
    try:
        grammar = GrammarWriter(chosen.format, tokenizer.added_tokens).write(form, writing)
    except GrammarError as error:
        raise _refused(where, str(error)) from None
    return StructuredOutputs(grammar=grammar)


def _writing(tokenizer: Tokenizer) -> CallWriting:
    """How this checkpoint writes calls."""

    def has(mark: str) -> bool:
        return mark in tokenizer.added_tokens or tokenizer.template_shows(mark)

    return next(w for w in tokenizer.answer_format.format.writings if all(map(has, w.declared_by)))


def _refused(where: str, problem: str) -> ApiError:
    return unprocessable(f"{where}: {problem}", param=where, code="unsupported")
