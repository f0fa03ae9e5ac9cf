"""Llama 3.2, Llama 4 and others: the answer is ``[f(a=1, b="x"), g()]``."""

from server.text.formats.syntax import CallSyntax, Format, PythonCall

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
)
