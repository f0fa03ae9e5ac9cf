"""Shell commands as they are printed: each works as it stands, in the shell that shows it.

Texts in the code name the interpreter `WRITTEN`; what is shown names the one that runs. Imports the
standard library alone, as whatever `start_app.py --stop` needs.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = ".venv/bin/python"
"""The interpreter as documentation and docstrings write it: that of the environment `make` creates."""


def shown(path: str | Path) -> str:
    """`path` relative to the project's root where it lies below, which is shorter; else as it is."""
    return os.path.relpath(path, ROOT) if ROOT in Path(path).parents else str(path)


def command(*arguments: str) -> str:
    """The shell command that runs this interpreter with `arguments` at the project's root."""
    return _python() + (f" {shlex.join(arguments)}" if arguments else "")


def with_interpreter(text: str | None) -> str:
    """`text` of a help page, with its commands as they work here."""
    return (text or "").replace(WRITTEN, _python())


def _python() -> str:
    python = shlex.quote(shown(sys.executable))
    return python if _in_root() else f"cd {shlex.quote(str(ROOT))} && {python}"


def _in_root() -> bool:
    try:
        return Path.cwd() == ROOT
    except FileNotFoundError:  # the working directory was deleted
        return False
