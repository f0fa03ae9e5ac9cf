"""The vocabulary in which a family's output is described: markers, and what stands between them.

A format is data (see the files beside this one); `parser.OutputParser` reads all of them. Markers are
plain strings. Where one is a special token of the tokenizer it is matched by its name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thinking:
    """Reasoning, between two markers."""

    open: str
    close: str
    anywhere: bool = False
    """Whether it may come after text, too; otherwise only before all of it."""


@dataclass(frozen=True, slots=True)
class JsonCall:
    """``{"name": "f", "arguments": {…}}``, keys in any order."""

    arguments: tuple[str, ...] = ("arguments", "parameters")
    """Keys under which the arguments may stand."""


@dataclass(frozen=True, slots=True)
class NamedCall:
    """The name in a header, then the arguments as a JSON object."""

    header: str
    """Regular expression for all that stands before the arguments' brace; its group `name` is the name."""


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """The name, then each argument as a key and a value between tags.

    Values are text; the tool's schema says which of them stand for a number, a list and so on.
    """

    name_close: str
    """What follows the name; empty: the name ends where the characters of a name do."""
    key_open: str
    key_close: str
    value_open: str
    """May be empty: the value follows the key."""
    value_close: str
    end: str
    """Follows the last argument."""


@dataclass(frozen=True, slots=True)
class PythonCall:
    """``f(a=1, b="x")``: keyword arguments that are Python literals."""


@dataclass(frozen=True, slots=True)
class TaggedArguments:
    """Arguments as a key and a value between tags: how they are written.

    `{key}` stands for the key. Text is written as it is, other values as JSON.
    """

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PythonArguments:
    """Keyword arguments, as Python writes them."""


@dataclass(frozen=True, slots=True)
class CallWriting:
    """How calls are written, for grammars that make an answer call; as the chat template writes them.

    `{name}` stands for the name of the tool.
    """

    before: str
    """Of each call, up to its arguments."""
    after: str
    arguments: TaggedArguments | PythonArguments | None = None
    """None: a JSON object."""
    begin: str = ""
    """Before all calls."""
    between: str = ""
    end: str = ""
    """Behind all calls."""
    single: bool = False
    """An answer holds one call at most."""
    declared_by: tuple[str, ...] = ()
    """A checkpoint writes calls so where all of these stand in its chat template or are special tokens."""


CallBody = JsonCall | NamedCall | TaggedCall | PythonCall


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How an answer holds tool calls."""

    bodies: tuple[CallBody, ...]
    """What a call may look like; of several the first whose first character fits."""
    opens: tuple[str, ...] = ()
    """Markers that stand right before a call."""
    closes: tuple[str, ...] = ()
    """Markers that may follow one."""
    sections: tuple[str, ...] = ()
    """Markers around all calls."""
    separators: str = ""
    """Characters after which another call may follow without a marker of its own."""
    bare: str = ""
    """Characters of which one begins an answer that is a call without any marker."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Those that may begin a call in the midst of text."""
        return self.opens + self.sections


@dataclass(frozen=True, slots=True)
class Format:
    """What a family of models writes, and how its chat template is to be spoken to."""

    name: str
    declared_by: tuple[str, ...]
    """A checkpoint declares the format where all of these stand in its chat template."""
    thinking: Thinking | None = None
    calls: CallSyntax | None = None
    writings: tuple[CallWriting, ...] = ()
    """Of several the first that the checkpoint declares; none: calls cannot be insisted on."""
    before_text: str = ""
    """What text begins with that is no reasoning."""
    after_thinking: str = ""
    """What stands between reasoning and the rest."""
    noise: tuple[str, ...] = ()
    """Markers that are passed over in text."""
    inner: tuple[str, ...] = ()
    """Special tokens that stand within calls, beside the markers above."""
    arguments_as_text: bool = False
    """Whether the template takes the arguments of calls in histories as JSON text, not as objects."""
    short_ids: bool = False
    """Whether the template insists on call ids of nine letters and digits."""
