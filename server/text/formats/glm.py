"""GLM 4.5 and later: ``<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>``."""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, TaggedArguments, TaggedCall, Thinking

FORMAT = Format(
    name="glm",
    declared_by=("<arg_key>", "<arg_value>"),
    thinking=Thinking("<think>", "</think>"),
    calls=CallSyntax(
        bodies=(
            TaggedCall(
                name_close="",
                key_open="<arg_key>",
                key_close="</arg_key>",
                value_open="<arg_value>",
                value_close="</arg_value>",
                end="</tool_call>",
            ),
        ),
        opens=("<tool_call>",),
    ),
    writings=(
        CallWriting(
            "<tool_call>{name}\n",
            "</tool_call>",
            TaggedArguments("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"),
            between="\n",
        ),
    ),
)
