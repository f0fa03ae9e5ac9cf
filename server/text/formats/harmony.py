"""gpt-oss: every message has a channel; reasoning is ``analysis``, a call is addressed to its function.

<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.f
<|constrain|>json<|message|>{…}<|call|>
"""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, NamedCall, Thinking

FORMAT = Format(
    name="harmony",
    declared_by=("<|channel|>", "<|message|>", "<|start|>"),
    thinking=Thinking("<|channel|>analysis<|message|>", "<|end|>", anywhere=True),
    calls=CallSyntax(
        bodies=(
            NamedCall(
                r"(?P<name>[\w.-]+)\s*(?:<\|channel\|>(?:commentary|analysis))?\s*"
                r"(?:<\|constrain\|>)?\w*\s*<\|message\|>\s*"
            ),
        ),
        opens=(
            "<|channel|>commentary to=functions.",
            "<|channel|>analysis to=functions.",
            "<|start|>assistant to=functions.",
            " to=functions.",
        ),
        closes=("<|call|>", "<|end|>"),
    ),
    writings=(
        CallWriting(
            "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>", "<|call|>", single=True
        ),
    ),
    before_text="<|channel|>final<|message|>",
    after_thinking="<|start|>assistant",
    noise=(
        "<|start|>assistant",
        "<|channel|>final<|message|>",
        "<|channel|>final <|constrain|>json<|message|>",
        "<|channel|>commentary<|message|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
    ),
    inner=("<|constrain|>",),
)
