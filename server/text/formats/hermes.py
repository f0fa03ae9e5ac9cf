"""Hermes and Qwen 2.5 and 3: ``<tool_call>{"name": "f", "arguments": {…}}</tool_call>``."""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, JsonCall, Thinking

FORMAT = Format(
    name="hermes",
    declared_by=("<tool_call>", "arguments"),
    thinking=Thinking("<think>", "</think>"),
    calls=CallSyntax(bodies=(JsonCall(),), opens=("<tool_call>",), closes=("</tool_call>",)),
    writings=(CallWriting('<tool_call>\n{"name": "{name}", "arguments": ', "}\n</tool_call>", between="\n"),),
)
