"""The chapters tell the truth: links, names, commands with what they print, answers to exercises."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from docs.tutorial.figures.draw import drawn
from tests.e2e.test_readme import clone, follow
from tests.utils.test_readme import commands_in

__all__ = ["clone"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial"
ENGLISH = sorted((TUTORIAL / "en").glob("*.md"))
PAGES = [*ENGLISH, *sorted((TUTORIAL / "zh").glob("*.md"))]
QUICK = {"roofline": ["--repeats", "1", "--size", "256"]}
"""Further arguments here for what measures times."""
PROCESSES = {"survive"}
"""Start servers of their own."""


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language and what follows it, content) of the code blocks."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(path: Path) -> list[tuple[str, str]]:
    """(text, target) of the links and figures within this repository."""
    found = re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", prose(path))
    return [(text, target) for text, target in found if not target.startswith("http")]


def examples(path: Path) -> Iterator[tuple[list[str], str, bool]]:
    """(arguments of Python, what it prints, whether the numbers are a machine's) of each command shown
    with its output."""
    shown = blocks(path)
    for (language, command), (after, output) in pairwise(shown):
        if language == "shell" and after.startswith("text") and command.startswith(".venv/bin/python"):
            _, *words = shlex.split(command.replace("\\\n", " "), comments=True)
            yield words, output, after == "text measured"


def test_both_languages_have_the_same_chapters() -> None:
    assert [page.name for page in ENGLISH] == [page.name for page in PAGES[len(ENGLISH) :]]


@pytest.mark.parametrize("english", ENGLISH, ids=lambda page: page.stem)
def test_both_languages_have_the_same_shape(english: Path) -> None:
    chinese = TUTORIAL / "zh" / english.name
    shape = [re.findall(r"^(#+) ", prose(page), re.M) for page in (english, chinese)]
    assert shape[0] == shape[1]
    code = [
        [(kind, re.sub(r"(?m) *#.*$", "", text)) for kind, text in blocks(page)]
        for page in (english, chinese)
    ]
    assert [kind for kind, _ in code[0]] == [kind for kind, _ in code[1]]
    for one, other in zip(*code, strict=True):
        assert one[0] == "mermaid" or one == other
    targets = [sorted(target for _, target in links(page)) for page in (english, chinese)]
    assert targets[0] == sorted(
        re.sub(r"\.zh\.svg$", ".en.svg", t).replace("../en/", "../zh/") for t in targets[1]
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere_and_names_are_there(page: Path) -> None:
    for text, target in links(page):
        path = (page.parent / target.split("#")[0]).resolve()
        assert path.exists(), target
        named = re.fullmatch(r"`(?:\w+\.)*(\w+)(?:\(\))?`", text)
        if path.suffix == ".py" and named and not text.endswith(".py`"):
            name = re.escape(named[1])
            found = re.search(
                rf"^\s*(?:async )?(?:def|class) {name}\b|^\s*{name}\b.*=|^\s*{name}: ", path.read_text(), re.M
            )
            assert found, f"{text} is not in {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_what_there_is(page: Path) -> None:
    for command in commands_in(page):
        python, *words = command.split()
        assert python == ".venv/bin/python", command
        target = ROOT / (words[1].replace(".", "/") if words[0] == "-m" else words[0])
        assert target.is_dir() or target.with_suffix(".py").is_file(), command


EXAMPLES = [
    pytest.param(words, output, measured, id=" ".join(words[1:]).removeprefix("docs.tutorial.code."))
    for page in ENGLISH
    for words, output, measured in examples(page)
    if words[0] == "-m" and words[1].rpartition(".")[2] not in PROCESSES
]


@pytest.mark.parametrize(("words", "output", "measured"), EXAMPLES)
def test_a_command_prints_what_is_shown(
    words: list[str], output: str, measured: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    name = words[1].rpartition(".")[2]
    if words[1].startswith("docs."):
        importlib.import_module(words[1]).main([*words[2:], *QUICK.get(name, [])])
        printed = capsys.readouterr().out
    else:
        printed = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    assert comparable(printed, measured) == comparable(output, measured)


def comparable(text: str, measured: bool) -> list[str]:
    """Lines without spaces at their ends; without numbers where these are a machine's."""
    if not measured:
        return [line.rstrip() for line in text.rstrip().splitlines()]
    words = (re.sub(r"[\d.,]+", "0", line) for line in text.strip().splitlines())
    return [" ".join(re.sub(r"\b(memory|arithmetic)\b", "…", line).split()) for line in words]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", ["01-one-token", "13-evaluation"])
def test_what_is_asked_of_the_stack_works_as_printed(page: str, clone: Path) -> None:
    """In a clean clone and a network of its own, as `tests.e2e.test_readme` follows the README."""
    shells = [text for kind, text in blocks(TUTORIAL / "en" / f"{page}.md") if kind == "shell"]
    commands = [line for text in shells if "make serve" in text for line in text.strip().splitlines()]
    printed = follow(clone, commands)
    answers = {"01-one-token": "data: [DONE]", "13-evaluation": "poisson:4"}
    assert answers[page] in printed[1]


@pytest.mark.slow
def test_a_stream_survives_its_server(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = [
        output for page in ENGLISH for words, output, _ in examples(page) if words[1].endswith("survive")
    ]
    assert shown in (ROOT / "README.md").read_text(encoding="utf-8")
    importlib.import_module("docs.tutorial.code.survive").main([])
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    "page", [p for p in ENGLISH if any(k == "python" for k, _ in blocks(p))], ids=lambda p: p.stem
)
def test_the_answers_to_the_exercises_are_right(page: Path) -> None:
    """The Python blocks of a page, one after the other: they check themselves."""
    names = {"__name__": "exercise"}
    for kind, program in blocks(page):
        if kind == "python":
            exec(compile(program, page.name, "exec"), names)


@pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.stem)
def test_excerpts_stand_in_the_files_that_they_name(page: Path) -> None:
    for kind, content in blocks(page):
        if kind == "py":
            first, excerpt = content.split("\n", 1)
            source = (ROOT / first.removeprefix("# ")).read_text(encoding="utf-8")
            assert textwrap.dedent(excerpt).rstrip() in unindented(source, excerpt), first


def unindented(source: str, excerpt: str) -> str:
    """`source`, moved to the left as far as the first line of `excerpt` stands to the right in it."""
    line = excerpt.lstrip().split("\n")[0]
    indent = next(len(text) - len(text.lstrip()) for text in source.splitlines() if text.strip() == line)
    return "\n".join(text[indent:] if text[:indent].isspace() else text for text in source.splitlines())


@pytest.mark.parametrize("page", [p for p in ENGLISH if p.stem[0].isdigit()], ids=lambda p: p.stem)
def test_every_chapter_has_exercises_with_answers(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<details>") == text.count("</details>") >= 2
    assert any(kind == "python" and "assert " in program for kind, program in blocks(page))
    assert "figures/" in text or "```mermaid" in text


def test_figures_are_those_that_the_script_draws() -> None:
    files = drawn()
    assert set((TUTORIAL / "figures").glob("*.svg")) == set(files)
    assert [path.name for path, content in files.items() if path.read_text(encoding="utf-8") != content] == []


def test_experiments_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (TUTORIAL / "code").glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 80} == {}
