"""Checkpoints that say themselves what their answers look like: transformers' ``response_template``.

transformers finds the regions of an answer (`transformers.utils.chat_parsing`) and reads what is in them;
here its events become parts. It gives calls out whole, at their end.
"""

from __future__ import annotations

import json
from typing import Any

from server.text.formats.parts import CallArguments, CallBegin, Content, Part, Reasoning, append
from server.text.formats.tool_types import Tools

_CONTENT = "content"
_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = "tool_calls"


class DeclaredParser:
    """An `AnswerParser` for a checkpoint's own ``response_template``.

    Args:
        template: the checkpoint's.
        prompt: the conversation as the model sees it: its end may belong to the answer.
        tools: those that may be called; without any, calls are text.
        schemas: the tools as the chat template gets them, by which arguments are cast.
        single: the answer ends with its first call.
    """

    def __init__(
        self, template: Any, prompt: str, tools: Tools, schemas: list[dict[str, Any]], *, single: bool = False
    ) -> None:
        from transformers.utils.chat_parsing import ResponseParser  # not at import: it is transformers'

        self.calls = 0
        self._tools = tools
        self._single = single
        self._parser = ResponseParser(template, prefix=prompt, tools=schemas)
        self._raw = ""  # of the region of calls that is open
        self._broken = False  # the parser gave up: the rest is text
        self._white: dict[type[Part], str] = {Content: "", Reasoning: ""}

    @property
    def ended(self) -> bool:
        return self._single and self.calls > 0

    def feed(self, text: str) -> list[Part]:
        # character by character, so that what came before a fault does not depend on the pieces
        parts: list[Part] = []
        for char in text:
            self._feed(char, parts)
        return parts

    def _feed(self, char: str, parts: list[Part]) -> None:
        if self._broken:
            self._text(char, Content, parts)
            return
        try:
            events = self._parser.feed(char)
        except (ValueError, KeyError) as error:
            self._give_up(error, parts)
            return
        self._take(events, parts)

    def finish(self) -> list[Part]:
        parts: list[Part] = []
        if not self._broken:
            try:
                self._take(self._parser.finalize()[1], parts)
            except (ValueError, KeyError) as error:
                self._give_up(error, parts)
        if not self.calls and self._white[Content]:
            append(parts, Content(self._white[Content]))
        return parts

    def _give_up(self, _: Exception, parts: list[Part]) -> None:
        """What stands in a region is not what the template promises: it is text."""
        self._broken = True
        self._text(self._raw, Content, parts)

    def _take(self, events: list[dict[str, Any]], parts: list[Part]) -> None:
        for event in events:
            kind, field = event["type"], event["field"]
            if field == _CALLS:
                self._take_call(event, parts)
            elif kind == "region_chunk" and (field == _CONTENT or field in _REASONING):
                self._text(event["text"], Content if field == _CONTENT else Reasoning, parts)
            elif kind == "region_close" and field in _REASONING:
                self._white[Reasoning] = ""

    def _take_call(self, event: dict[str, Any], parts: list[Part]) -> None:
        if event["type"] == "region_open":
            self._raw = ""
        elif event["type"] == "region_chunk":
            self._raw += event["text"]
        else:
            value = event["value"]
            for call in value if isinstance(value, list) else [value]:
                self._call(call, parts)
            self._raw = ""

    def _call(self, call: Any, parts: list[Part]) -> None:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(name, str) or name not in self._tools or not isinstance(arguments, dict | None):
            self._text(self._raw, Content, parts)
        elif not self.ended:
            self._white[Content] = ""
            append(parts, CallBegin(self.calls, name))
            append(parts, CallArguments(self.calls, json.dumps(arguments or {}, ensure_ascii=False)))
            self.calls += 1

    def _text(self, text: str, kind: type[Content] | type[Reasoning], parts: list[Part]) -> None:
        """Give out `text` without white space around it."""
        if self.ended:
            return
        text = self._white[kind] + text
        shown = text.rstrip()
        self._white[kind] = text[len(shown) :]
        if shown:
            append(parts, kind(shown))
