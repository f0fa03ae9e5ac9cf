"""DeepSeek V3, R1 and V3.1: calls of a name and JSON, between tokens of their own.

V3 and R1 put ``function`` before the name and the JSON into a code block; V3.1 does neither.
"""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, NamedCall, Thinking

FORMAT = Format(
    name="deepseek",
    declared_by=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
    thinking=Thinking("<think>", "</think>"),
    calls=CallSyntax(
        bodies=(
            NamedCall(
                r"(?:function<｜tool▁sep｜>(?P<name>[\w.-]+)\s*```json\s*"
                r"|(?P<bare_name>[\w.-]+)<｜tool▁sep｜>\s*)"
            ),
        ),
        opens=("<｜tool▁call▁begin｜>",),
        closes=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
        sections=("<｜tool▁calls▁begin｜>",),
    ),
    writings=(
        CallWriting(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
            "\n```<｜tool▁call▁end｜>",
            begin="<｜tool▁calls▁begin｜>",
            between="\n",
            end="<｜tool▁calls▁end｜>",
            declared_by=("```json",),
        ),
        CallWriting(
            "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
            "<｜tool▁call▁end｜>",
            begin="<｜tool▁calls▁begin｜>",
            end="<｜tool▁calls▁end｜>",
        ),
    ),
    inner=("<｜tool▁sep｜>",),
    arguments_as_text=True,
)
