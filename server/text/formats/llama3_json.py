"""Llama 3.1: the answer is ``{"name": "f", "parameters": {…}}``, several are separated by semicolons."""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, JsonCall

FORMAT = Format(
    name="llama3_json",
    declared_by=('"name": function name', '"parameters"'),
    calls=CallSyntax(bodies=(JsonCall(),), opens=("<|python_tag|>",), separators=";", bare="{"),
    writings=(CallWriting('{"name": "{name}", "parameters": ', "}", between="; "),),
)
