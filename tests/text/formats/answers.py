"""Answers in the style of each family, and what they say."""

from __future__ import annotations

from collections.abc import Iterable

from server.text.formats.parser import OutputParser
from server.text.formats.parts import Called, Parsed
from server.text.formats.registry import FORMATS
from server.text.formats.tool_types import Tools

SCHEMAS = {
    "get_weather": {
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "flags": {"type": "array"},
        }
    },
    "now": {},
}

WEATHER = Called("get_weather", '{"city": "Paris", "days": 2}')
NOW = Called("now", "{}")


def read(name: str, pieces: Iterable[str], *, in_reasoning: bool = False, single: bool = False) -> Parsed:
    """What an answer of the format `name` says that comes in `pieces`."""
    chosen = FORMATS[name]
    parser = OutputParser(
        chosen.thinking,
        chosen.calls,
        chosen.noise,
        Tools(SCHEMAS),
        in_reasoning=in_reasoning,
        single=single,
    )
    parts = [part for piece in pieces for part in parser.feed(piece)]
    return Parsed.of([*parts, *parser.finish()])


HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
DEEPSEEK_BEGIN = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"

CASES: dict[str, list[tuple[str, Parsed]]] = {
    "hermes": [
        (
            f"<think>\nhm\n</think>\n\nLet me see.\n{HERMES}\n"
            '<tool_call>{"name": "now", "arguments": {}}</tool_call>',
            Parsed("Let me see.", "hm", [WEATHER, NOW]),
        ),
        ("no calls\n\n", Parsed("no calls\n\n", "", [])),
        ("Hello <think>x</think>\n", Parsed("Hello <think>x</think>\n", "", [])),
        ('<tool_call>{"name": "now"}</tool_call>', Parsed("", "", [NOW])),
        ('<tool_call>{"id": 1.5e3, "arguments": {}, "name": "now"}</tool_call>', Parsed("", "", [NOW])),
        ("<tool_call>nothing</tool_call>", Parsed("<tool_call>nothing</tool_call>", "", [])),
        (
            '<tool_call>{"name": "nope", "arguments": {}}</tool_call> x',
            Parsed('<tool_call>{"name": "nope", "arguments": {}}</tool_call> x', "", []),
        ),
        (
            '<tool_call>{"name": "get_weather", "arguments": {"city": "P"',
            Parsed("", "", [Called("get_weather", '{"city": "P"')]),
        ),
        (f"<tool_call>{{oops {HERMES}", Parsed("<tool_call>{oops", "", [WEATHER])),
    ],
    "qwen3_coder": [
        (
            "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
            "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
            Parsed("I look.", "", [WEATHER]),
        ),
        ("<function=now>\n</function>done", Parsed("done", "", [NOW])),
        (
            '<function=get_weather><parameter=city>\na\n"b"\\ </p>\n</parameter>'
            "<parameter=note>\nNone\n</parameter><parameter=flags>[1, {}]</parameter></function>",
            Parsed(
                "",
                "",
                [Called("get_weather", '{"city": "a\\n\\"b\\"\\\\ </p>", "note": null, "flags": [1, {}]}')],
            ),
        ),
        ("<function=nope>\n</function>", Parsed("<function=nope>\n</function>", "", [])),
    ],
    "llama3_json": [
        (
            '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}; '
            '{"name": "now", "parameters": {}}',
            Parsed("", "", [WEATHER, NOW]),
        ),
        ('<|python_tag|>{"name": "now", "parameters": {}}', Parsed("", "", [NOW])),
        ('  {"a": 1}\n', Parsed('  {"a": 1}\n', "", [])),
        ('Like so: {"name": "now"}', Parsed('Like so: {"name": "now"}', "", [])),
    ],
    "pythonic": [
        ('[get_weather(city="Paris", days=2), now()]', Parsed("", "", [WEATHER, NOW])),
        ("<|python_start|>[now()]<|python_end|>", Parsed("", "", [NOW])),
        ("[get_weather(city='it\\'s )')]", Parsed("", "", [Called("get_weather", '{"city": "it\'s )"}')])),
        (
            "[get_weather(city='P', flags=[true, False], note=null)]",
            Parsed("", "", [Called("get_weather", '{"city": "P", "flags": [true, false], "note": null}')]),
        ),
        ("[1] says so", Parsed("[1] says so", "", [])),
        ("[now(1)]", Parsed("[now(1)]", "", [])),
        ("[now(a=b)] x", Parsed("[now(a=b)] x", "", [])),
    ],
    "mistral": [
        (
            '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}, '
            '{"name": "now", "arguments": {}}]',
            Parsed("", "", [WEATHER, NOW]),
        ),
        (
            "[THINK]hm[/THINK]So:[TOOL_CALLS]now[ARGS]{}"
            '[TOOL_CALLS]get_weather[CALL_ID]a1[ARGS]{"city": "x"}',
            Parsed("So:", "hm", [NOW, Called("get_weather", '{"city": "x"}')]),
        ),
        ("[TOOL_CALLS]no[ARGS]{}", Parsed("[TOOL_CALLS]no[ARGS]{}", "", [])),
    ],
    "deepseek": [
        (
            f"<think>hm</think>So.{DEEPSEEK_BEGIN}function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            Parsed("So.", "hm", [WEATHER, NOW]),
        ),
        (f"{DEEPSEEK_BEGIN}what?", Parsed(f"{DEEPSEEK_BEGIN}what?", "", [])),
    ],
    "glm": [
        (
            "<think></think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "<arg_key>days</arg_key><arg_value>2</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
            Parsed("", "", [WEATHER, NOW]),
        ),
        ("<tool_call>nope</tool_call>", Parsed("<tool_call>nope</tool_call>", "", [])),
    ],
    "harmony": [
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions."
            'get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 2}<|call|>',
            Parsed("", "hm", [WEATHER]),
        ),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant"
            "<|channel|>final<|message|>to=x <b><|return|>",
            Parsed("to=x <b>", "a", []),
        ),
        (
            "<|channel|>commentary<|message|>First.<|end|><|start|>assistant to=functions.now"
            "<|channel|>commentary json<|message|>{}<|call|>",
            Parsed("First.", "", [NOW]),
        ),
    ],
    "think": [("\n<think>\na\n</think>\n\nb\n", Parsed("b\n", "a", []))],
}

ANSWERS = [(name, text, parsed) for name, cases in CASES.items() for text, parsed in cases]
