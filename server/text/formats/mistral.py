"""Mistral: ``[TOOL_CALLS][{"name": "f", "arguments": {…}}]``, since its 11th tokenizer
``[TOOL_CALLS]f[ARGS]{…}`` once for each call; reasoning is ``[THINK]…[/THINK]``."""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, JsonCall, NamedCall, Thinking

FORMAT = Format(
    name="mistral",
    declared_by=("[TOOL_CALLS]",),
    thinking=Thinking("[THINK]", "[/THINK]"),
    calls=CallSyntax(
        bodies=(JsonCall(), NamedCall(r"(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*")),
        opens=("[TOOL_CALLS]", "[TOOL_CALLS][", "[TOOL_CALLS] ["),
        closes=("]",),
        separators=",",
    ),
    writings=(
        CallWriting("[TOOL_CALLS]{name}[ARGS]", "", declared_by=("[ARGS]",)),
        CallWriting('{"name": "{name}", "arguments": ', "}", begin="[TOOL_CALLS] [", between=", ", end="]"),
    ),
    inner=("[ARGS]", "[CALL_ID]"),
    short_ids=True,
)
