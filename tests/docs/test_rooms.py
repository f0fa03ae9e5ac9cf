"""The pages of the rooms are short, name files that there are, and leave no package out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ROOT / "docs" / "rooms"
PAGES = sorted(ROOMS.glob("*.md"))
LONGEST_PAGE = 40


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_page_is_short_and_names_what_there_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_PAGE
    rooms = [ROOT / name for name in re.findall(r"`([\w/]+)/`", text.splitlines()[0])] + [ROOT / "tests"]
    for name in re.findall(r"`([\w/]+(?:\.(?:py|h)|/))`", text):
        inside = (path for room in rooms for path in room.rglob(name.rstrip("/").rpartition("/")[2]))
        assert (ROOT / name).exists() or any(str(path).endswith(name.rstrip("/")) for path in inside), name


def test_every_package_has_a_page() -> None:
    told = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for package in ("client", "server"):
        for room in (ROOT / package).iterdir():
            if room.is_dir() and (room / "__init__.py").exists():
                assert f"{package}/{room.name}/" in told, room.name


def test_the_index_lists_every_page() -> None:
    index = (ROOMS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == {path.name for path in PAGES} - {"README.md"}
