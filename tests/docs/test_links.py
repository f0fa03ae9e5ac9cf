"""Links between pages lead somewhere, anchors included."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
)
PAGES = [ROOT / name for name in LISTED.stdout.split() if (ROOT / name).is_file()]


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace("](", "] ("), text)


def anchors(path: Path) -> set[str]:
    """Those that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    bare = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{target}: {sorted(anchors(path))}"


ELSEWHERE = ("nanovllm/", "vllm/", "run/")
"""Of other projects, or made when services run."""


def test_files_that_are_named_exist() -> None:
    """Each by its path from the root, or by the end of it; notes of the laboratory name what was."""
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True).stdout.split()
    known = "\n".join(["", *(f"/{name}" for name in files), ""])
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        if "notes" not in page.parts
        for name in re.findall(
            r"`([\w./-]+/[\w.-]+\.(?:py|h|json|md|yml|yaml|js|css|svg))`", page.read_text("utf-8")
        )
        if not name.startswith(ELSEWHERE) and f"/{name}\n" not in known
    ]
    assert missing == []


@pytest.mark.parametrize("term", ["连续批处理", "批量处理", "连续批次"])
def test_one_thing_has_one_name_in_chinese(term: str) -> None:
    """持续批处理."""
    pages = [*PAGES, ROOT / "docs" / "reference" / "notes.yaml"]
    assert [str(page.relative_to(ROOT)) for page in pages if term in page.read_text("utf-8")] == []
