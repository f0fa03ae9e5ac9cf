"""Tools and forms by the `openai` SDK, as the README shows them."""

from __future__ import annotations

import re

import pytest

from tests.e2e.stack import ROOT, Stack


def test_the_round_trip_of_the_readme(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n([^`]*tool_calls.*?)```\n```\n(.*?)```", text, re.S)
    assert found is not None
    program = found[1].replace("http://127.0.0.1:8000", stack.gateway)
    assert stack.gateway in program
    exec(compile(program, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out == found[2]
