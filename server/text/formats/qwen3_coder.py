"""Qwen3-Coder and Qwen 3.5: ``<tool_call><function=f><parameter=a>1</parameter></function></tool_call>``.

The models leave the outer tag out at times, so the inner one is what opens a call.
"""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, TaggedArguments, TaggedCall, Thinking

FORMAT = Format(
    name="qwen3_coder",
    declared_by=("<tool_call>", "<function=", "<parameter="),
    thinking=Thinking("<think>", "</think>"),
    calls=CallSyntax(
        bodies=(
            TaggedCall(
                name_close=">",
                key_open="<parameter=",
                key_close=">",
                value_open="",
                value_close="</parameter>",
                end="</function>",
            ),
        ),
        opens=("<function=",),
        sections=("<tool_call>",),
        closes=("</tool_call>",),
    ),
    writings=(
        CallWriting(
            "<tool_call>\n<function={name}>\n",
            "</function>\n</tool_call>",
            TaggedArguments("<parameter={key}>\n", "\n</parameter>\n"),
            between="\n",
        ),
    ),
)
