"""The examples of ``docs/extending.md`` work: each Python block is run as it stands on the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extending.md"


def sections() -> dict[str, str]:
    """Heading → text of the seams on the page."""
    _, *found = re.split(r"^## (.+)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("heading", sections())
def test_the_example_of_a_seam_works(heading: str) -> None:
    """It has one, which checks itself; in a process of its own, since it may register something."""
    blocks = re.findall(r"^```python\n(.*?)^```", sections()[heading], re.MULTILINE | re.DOTALL)
    program = "\n".join(blocks)
    assert "assert " in program
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("heading", sections())
def test_every_file_that_a_seam_names_exists(heading: str) -> None:
    named = re.findall(r"`([\w/]+/[\w/]*\.(?:py|json|toml))`", sections()[heading])
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
