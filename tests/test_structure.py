"""The rooms of the project: who may import whom (``pyproject.toml``), and how long a file may be."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-cache"], cwd=root, capture_output=True, text=True)


def test_arrows_go_down_only_and_in_no_circle() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout


def test_a_wrong_arrow_is_found(tmp_path: Path) -> None:
    """Also one that is drawn inside a function, or for types alone."""
    for package in ("client", "protocol", "server", "utils"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line, name in (
        ("server/scheduling/limits.py", "def late() -> None:\n    import server.worker.runner", "Rooms"),
        ("server/text/tokenizer.py", "if False:\n    from server.api import service", "Rooms"),
        ("utils/logs.py", "import client.config", "services"),
        ("client/health/load.py", "from client.routing import router", "gateway"),
        ("client/http/keys.py", "import torch", "torch"),
    ):
        before = (tmp_path / file).read_text()
        (tmp_path / file).write_text(f"{before}\n\n{line}\n")
        result = lint(tmp_path)
        assert result.returncode == 1 and "BROKEN" in result.stdout, file
        assert name in result.stdout.split("Broken contracts")[1], file
        (tmp_path / file).write_text(before)
    assert lint(tmp_path).returncode == 0


LONGEST_FILE = 300
LONGEST_FUNCTION = 60
LONG_FUNCTIONS = {
    ("server/ops/triton/fixed_decode.py", "decode_in_pieces"): "a kernel",
}
"""Functions that may be longer, each with the reason."""


def sources() -> list[Path]:
    """The Python files of the project."""
    rooms = ("protocol", "client", "server", "utils", "benchmarks", "tests", "tools", "demo_model", "configs")
    return [*ROOT.glob("*.py"), *(file for room in rooms for file in sorted((ROOT / room).rglob("*.py")))]


def lengths(file: Path) -> tuple[int, dict[str, int]]:
    """Lines of `file`, and of each function in it, its decorators left out."""
    text = file.read_text(encoding="utf-8")
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return len(text.splitlines()), {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}


def test_no_file_and_no_function_is_long() -> None:
    found = []
    for file in sources():
        lines, functions = lengths(file)
        place = file.relative_to(ROOT).as_posix()
        if lines > LONGEST_FILE:
            found.append(f"{place} has {lines} lines")
        for name, size in functions.items():
            if size > LONGEST_FUNCTION and (place, name) not in LONG_FUNCTIONS:
                found.append(f"{name} in {place} has {size} lines")
    assert found == []
    for place, name in LONG_FUNCTIONS:
        assert name in lengths(ROOT / place)[1], f"{place} has no {name} any more"


def test_a_long_function_is_found(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("class A:\n    def f(self):\n" + "        pass\n" * LONGEST_FILE)
    assert lengths(file) == (LONGEST_FILE + 2, {"f": LONGEST_FILE + 1})
