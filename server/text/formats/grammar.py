"""Grammars for the answers of a format: reasoning, calls that a request insists on, text of a given form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from server.text.formats.python_arguments import check_name, python_arguments
from server.text.formats.syntax import CallWriting, Format, PythonArguments, TaggedArguments
from server.text.grammars.source import bounded_schema, quoted

_ANY_TEXT = "/(.|\\n)*/"


@dataclass(frozen=True, slots=True)
class FormTool:
    """A tool that an answer may call; `parameters` is a JSON schema."""

    name: str
    parameters: dict[str, Any]
    strict: bool = False
    """Its arguments follow the schema; otherwise keywords that cannot be honoured are passed over."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What an answer must look like.

    Attributes:
        tools: that it may call.
        must_call: it has at least one call, and no text.
        single: at most one call.
        schema: what its text must be, as a JSON schema; None: any text.
        in_reasoning: it begins within reasoning, which the prompt has opened.
    """

    tools: Sequence[FormTool] = ()
    must_call: bool = False
    single: bool = False
    schema: dict[str, Any] | bool | None = None
    in_reasoning: bool = False


@dataclass(slots=True)
class GrammarWriter:
    """Writes a grammar in llguidance's dialect of Lark.

    Args:
        format: what the model writes.
        added: the tokens of their own by name. A marker is written as its token; but it counts as well where
            it is spelled out, as it does for the parser.
    """

    format: Format
    added: Mapping[str, int]
    _rules: list[str] = field(default_factory=list)

    def write(self, form: AnswerForm, writing: CallWriting | None) -> str:
        """The grammar of all answers of `form`.

        Args:
            writing: how calls are written; None where there are none.

        Raises:
            GrammarError: a schema exceeds a bound.
        """
        self._rules = ["%llguidance {}", "start:"]
        thinking, tools = self._thinking(form), form.tools if writing is not None else ()
        if form.schema is not None:
            ways = [f"{self.marker(self.format.before_text)} {self._json(form.schema)}"]
        else:
            ways = [] if form.must_call else [f"{self.marker(self.format.before_text)} {self._free_text()}"]
        if tools and writing is not None:
            text_first = not (form.must_call or self.format.before_text or self._is_bare)
            among_text = text_first and form.schema is None
            ways.append(self._calls(form, writing, among_text=among_text))
        self._rules[1] = f"start: {thinking} ({' | '.join(ways)})"
        return "\n".join(self._rules)

    # -- markers and text --------------------------------------------------------------------------

    def marker(self, text: str) -> str:
        """A sequence of tokens and text; empty for none."""
        return " ".join(self._alternatives(piece) for piece in self._pieces(text))

    def _alternatives(self, piece: str) -> str:
        text = quoted(piece)
        return f"(<[{self.added[piece]}]> | {text})" if piece in self.added else text

    def _pieces(self, text: str) -> Iterator[str]:
        """Names of tokens and the text between them, in turn."""
        while text:
            found = [(at, -len(name), name) for name in self.added if name and (at := text.find(name)) >= 0]
            at, _, name = min(found, default=(len(text), 0, ""))
            yield from filter(None, (text[:at], name))
            text = text[at + len(name) :]

    def _rule(self, name: str, body: str) -> str:
        """A new rule; returns its name, which is `name` and a number."""
        name = f"{name}_{len(self._rules)}"
        self._rules.append(f"{name}{body}")
        return name

    def _until(self, marker: str) -> str:
        """Any text up to and with `marker`, at its first place."""
        first, *rest = self._pieces(marker)
        until = self._rule("until", f"[lazy]: {_ANY_TEXT} {quoted(first)}")
        if first in self.added:
            text = self._rule("TEXT", f": {_ANY_TEXT}")
            until = f"({text} <[{self.added[first]}]> | {until})"
        return " ".join([until, *map(self._alternatives, rest)])

    def _free_text(self) -> str:
        calls = self.format.calls
        if calls is None or not self._is_bare:
            return self._rule("TEXT", f": {_ANY_TEXT}")
        # text begins neither so nor with a marker of calls, of which two characters tell
        heads = sorted({mark[:2] for mark in calls.opens})
        others = "".join(re.escape(first) for first in (*calls.bare, *(head[0] for head in heads)))
        ways = [f"[^\\s{others}]", *(f"{re.escape(head[0])}[^{re.escape(head[1])}]" for head in heads)]
        return self._rule("TEXT", f": /(\\s*({'|'.join(ways)})(.|\\n)*)?/")

    @property
    def _is_bare(self) -> bool:
        """Whether calls need no marker: what begins like one is one."""
        return self.format.calls is not None and bool(self.format.calls.bare)

    def _json(self, schema: dict[str, Any] | bool, *, lenient: bool = False) -> str:
        return f"%json {bounded_schema(schema, lenient=lenient)}"

    def _thinking(self, form: AnswerForm) -> str:
        thinking = self.format.thinking
        if thinking is None:
            return ""
        after = self.marker(self.format.after_thinking) or "/[ \\n]{0,4}/"
        rest = f"{self._until(thinking.close)} {after}"
        return rest if form.in_reasoning else f"({self.marker(thinking.open)} {rest})?"

    # -- calls -------------------------------------------------------------------------------------

    def _calls(self, form: AnswerForm, writing: CallWriting, *, among_text: bool) -> str:
        """One call or more; text may come before them if they are `among_text`."""
        begin, end = writing.begin, self.marker(writing.end)
        bodies = {tool.name: self._body(tool, writing) for tool in form.tools}
        opening = ""
        if among_text:
            trigger = self._trigger(begin + writing.before)
            opening = self._until(trigger)
        else:
            trigger = ""

        def call(name: str, before: str, skipped: str) -> str:
            start = self.marker((before + writing.before.replace("{name}", name)).removeprefix(skipped))
            return f"{start} {bodies[name]}"

        first = " | ".join(call(name, begin, trigger) for name in bodies)
        calls = f"{opening} ({first})"
        if not (form.single or writing.single):
            further = " | ".join(call(name, writing.between, "") for name in bodies)
            calls += f" ({further})*"
        return f"{calls} {end}"

    def _trigger(self, beginning: str) -> str:
        """The marker that `beginning`, of a call, begins with."""
        calls = self.format.calls
        markers = () if calls is None else calls.markers
        fitting = [marker for marker in markers if beginning.startswith(marker)]
        return max(fitting, key=len, default=beginning.partition("{name}")[0])

    def _body(self, tool: FormTool, writing: CallWriting) -> str:
        """The arguments of a call, and what ends it."""
        schema, after = tool.parameters or {"type": "object"}, self.marker(writing.after)
        if writing.arguments is None:
            return f"{self._json(schema, lenient=not tool.strict)} {after}"
        if isinstance(writing.arguments, PythonArguments):
            check_name(tool.name)
            json = partial(self._json, lenient=not tool.strict)
            return f"{python_arguments(schema, json, self._rule)} {after}"
        properties = schema.get("properties")
        required = schema.get("required") or ()
        parts = []
        for key, part in (properties if isinstance(properties, dict) else {}).items():
            argument = self._argument(key, part, schema, writing.arguments, tool)
            parts.append(argument if key in required else f"({argument})?")
        return f"{' '.join(parts)} {after}"

    def _argument(
        self, key: str, part: Any, schema: dict[str, Any], tags: TaggedArguments, tool: FormTool
    ) -> str:
        """A key and its value: text as it is, anything else as JSON."""
        before = self.marker(tags.before.replace("{key}", key))
        if not isinstance(part, dict) or part.get("type", "string") == "string":
            choices = part.get("enum") if isinstance(part, dict) else None
            if choices and all(isinstance(choice, str) for choice in choices):
                return f"{before} ({' | '.join(map(quoted, choices))}) {self.marker(tags.after)}"
            return f"{before} {self._until(tags.after)}"
        definitions: dict[str, Any] = {n: schema[n] for n in ("$defs", "definitions") if n in schema}
        value = self._json(definitions | part, lenient=not tool.strict)
        return f"{before} {value} {self.marker(tags.after)}"
