"""Llama 3.2, Llama 4 and others: the answer is ``[f(a=1, b="x"), g()]``."""

from server.text.formats.syntax import CallSyntax, CallWriting, Format, PythonArguments, PythonCall

FORMAT = Format(
    name="pythonic",
    declared_by=("[func_name1(",),
    calls=CallSyntax(
        bodies=(PythonCall(),),
        opens=("<|python_start|>[", "<|python_start|>"),
        closes=("<|python_end|>", "]"),
        separators=",",
        bare="[",
    ),
    writings=(
        CallWriting(
            "{name}(",
            ")",
            PythonArguments(),
            begin="<|python_start|>[",
            between=", ",
            end="]<|python_end|>",
            declared_by=("<|python_start|>",),
        ),
        CallWriting("{name}(", ")", PythonArguments(), begin="[", between=", ", end="]"),
    ),
)
