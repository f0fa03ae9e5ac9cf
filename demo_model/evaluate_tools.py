"""How often the demo model calls tools rightly, says rightly what they returned, and fills records rightly.

All answers are greedy and free: no grammar helps. The prompts are held out from training by their numbers
or names.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from random import Random
from typing import Any

from demo_model.answering import Checkpoint
from demo_model.corpus import records
from demo_model.corpus.calculator import Calculator
from demo_model.corpus.calculator import use as use_calculator
from demo_model.corpus.definitions import Call, Definition, ToolUse
from demo_model.corpus.tools import Toolbox

Message = dict[str, Any]
_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.S)


def calls_in(text: str) -> list[Call] | None:
    """The calls that an answer consists of; None where anything else stands there, or no JSON."""
    if _CALL.sub("", text).strip():
        return None
    try:
        found = [json.loads(body) for body in _CALL.findall(text)]
        return [Call(body["name"], body["arguments"]) for body in found]
    except (ValueError, KeyError, TypeError):
        return None


def round_trip(used: ToolUse) -> list[Message]:
    """The conversation up to the results of the tools."""
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for i, call in enumerate(used.calls)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"call_{i}", "content": text} for i, text in enumerate(used.results)
    ]
    return [
        {"role": "user", "content": used.question},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
    ]


def report_tools(checkpoint: Checkpoint, count: int) -> None:
    """Prints the shares of right calls, of right answers to their results, and of calls left alone."""
    rng = Random("held out")
    asked: list[tuple[str, list[Definition], ToolUse]] = []
    for _ in range(count):
        calculator = Calculator(rng)
        used = use_calculator(rng, calculator, held_out=True)
        asked.append(("calculator alone", calculator.definitions, used))
        box = Toolbox(rng)
        asked.append(("one of several tools", box.definitions, box.use(rng, None, held_out=True)))
    calls = checkpoint.answers(
        [checkpoint.prompt(round_trip(used)[:1], tools) for _, tools, used in asked],
        special=False,
        max_new_tokens=160,
    )
    answers = checkpoint.answers(
        [checkpoint.prompt(round_trip(used), tools) for _, tools, used in asked], special=False
    )
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for (kind, _, used), call, answer in zip(asked, calls, answers, strict=True):
        called = calls_in(call) == list(used.calls)
        right[f"{kind}: name and arguments of the call"].append(called)
        right[f"{kind}: answer after the result"].append(answer == used.answer)
        if not called:
            wrong.append(f"{used.question!r}: {call!r} instead of {used.calling!r}")
        if answer != used.answer:
            wrong.append(f"{used.question!r}, {used.results}: {answer!r} instead of {used.answer!r}")
    _print_shares(right, wrong)


def report_records(checkpoint: Checkpoint, count: int) -> None:
    """Prints the share of records that are filled rightly where the prompt names their keys, by kind."""
    rng = Random("held out")
    asked = [records.request(rng, held_out=True) for _ in range(count)]
    prompts = []
    for one in asked:
        system, said = records.ask(rng, one, keys_told=True)
        messages = [{"role": "system", "content": system}] if system else []
        prompts.append(checkpoint.prompt([*messages, {"role": "user", "content": said}]))
    answers = checkpoint.answers(prompts, special=False, max_new_tokens=96)
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for one, prompt, answer in zip(asked, prompts, answers, strict=True):
        fits = _read(answer) == one.record
        right["records"].append(fits)
        right[f"records: {one.kind}"].append(fits)
        if not fits:
            wrong.append(f"{prompt!r}: {answer!r} instead of {one.answer!r}")
    _print_shares(right, wrong)


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _print_shares(right: dict[str, list[bool]], wrong: list[str]) -> None:
    for name, fits in sorted(right.items()):
        print(f"{name}: {100 * sum(fits) / len(fits):.1f} % of {len(fits)}")
    print(*wrong[:25], sep="\n  ", end="\n\n", flush=True)
