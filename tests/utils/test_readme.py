"""The READMEs name files, commands and variables that there are, and say the same in both languages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import start_app
from utils.options import CONFIGS

ROOT = CONFIGS.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_file_that_is_named_exists(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    places = [ROOT, *(path for path in (ROOT / "server").iterdir() if path.is_dir())]
    named = set(re.findall(r"`([\w/]+\.(?:py|txt|json))`", text)) | set(re.findall(r"\]\(([\w/.-]+)\)", text))
    generated = {"client_config.json", "cb_server_config.json", "sb_server_config.json", "config.json"}
    missing = [name for name in named - generated if not any((place / name).exists() for place in places)]
    assert missing == []


def test_both_readmes_show_the_same_commands_and_answers() -> None:
    blocks = [re.findall(r"```\w*\n(.*?)```", path.read_text(encoding="utf-8"), re.S) for path in READMES]
    english, chinese = ([re.sub(r"#.*", "", block) for block in found] for found in blocks)
    assert english == chinese
    shapes = [re.findall(r"^(#+) |^\|(-+\|)", path.read_text(encoding="utf-8"), re.M) for path in READMES]
    assert shapes[0] == shapes[1]


WRITTEN = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/reference/*/*.md",
        "docs/rooms/*.md",
        "deploy/*.md",
        "benchmarks/*.md",
        "benchmarks/*/*.md",
        "demo_model/*.md",
        "*.py",
        "*/*.py",
        "*/*/*.py",
    )
    for path in ROOT.glob(pattern)
    if path.parts[len(ROOT.parts)] not in ("tests", ".venv")
)
"""Documents, and programs, whose docstrings are their help."""


def commands_in(path: Path) -> list[str]:
    """The commands in a text that call Python, each from its interpreter on."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"[\w./]*python3? +(?:-m \w+\.\w|\w+_app\.py)[^`#\n]*", text)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_an_interpreter_and_what_there_is(path: Path) -> None:
    for command in commands_in(path):
        python, *words = command.split()
        assert python == ".venv/bin/python", command
        name = re.match(r"[\w.]*\w", words[1] if words[0] == "-m" else words[0])
        assert name is not None
        target = ROOT / (name[0].replace(".", "/") if words[0] == "-m" else name[0])
        assert target.is_file() or target.is_dir() or target.with_suffix(".py").is_file(), command
        if name[0] == "start_app.py":
            given = [word for word in words if word.startswith("--")]
            assert set(given) <= set(re.findall(r"(--\w+)", start_app.build_parser().format_help())), command


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_target_and_variable_of_make_is_there(readme: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = readme.read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)\b(?=`| *#|\n)", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
