"""The requirements files agree with each other: what one pins lies in the range that another gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from utils.commands import ROOT

PINNED = ["constraints.txt", "server_gpu_requirements.txt", "server_gpu_next_requirements.txt"]
RANGES = ["client_requirements.txt", "server_requirements.txt", "test_requirements.txt"]


def requirements(name: str) -> dict[str, Requirement]:
    """Those of one file, by name in lower case, without the files that it includes."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("-")]
    assert len({one.name.lower() for one in found}) == len(found)
    return {one.name.lower(): one for one in found}


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize("ranges", RANGES)
def test_what_is_pinned_lies_in_the_ranges(pinned: str, ranges: str) -> None:
    pins = requirements(pinned)
    for name, wanted in requirements(ranges).items():
        if name in pins:
            (pin,) = pins[name].specifier
            assert pin.operator == "=="
            assert wanted.specifier.contains(pin.version), f"{name}: {pin} is not in {wanted}"
        else:
            assert pinned != "constraints.txt" and ranges == "test_requirements.txt", f"{name} has no pin"


@pytest.mark.parametrize("ranges", RANGES)
def test_what_is_installed_already_may_stay(ranges: str) -> None:
    """A pin there would put another torch in the place of the one that was chosen for a GPU."""
    for wanted in requirements(ranges).values():
        assert {one.operator for one in wanted.specifier} <= {">=", "!="}, wanted


def test_make_installs_what_is_pinned() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"\$\(PIP\) .*-r \w+\.txt", makefile)
    assert installs and re.search(r"^PIP := .* -c constraints\.txt$", makefile, re.M)
    assert Path(ROOT / "constraints.txt").is_file()
