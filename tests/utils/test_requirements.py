"""The requirements files agree with each other: what one pins lies in the range that another gives."""

from __future__ import annotations

import json
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


MEASURED = sorted((ROOT / "benchmarks" / "results").glob("gpu-*.json"))
"""What ran on GPUs, each with the packages that it ran on."""


def versions_that_ran(name: str) -> set[str]:
    """Of a package, in all measurements, without the mark of the CUDA that it was built for."""
    runs = [json.loads(path.read_text()) for path in MEASURED]
    found = [run.get("versions", run).get(name) for run in runs]
    return {version.partition("+")[0] for version in found if version is not None}


@pytest.mark.parametrize("name", ["torch", "triton", "transformers", "vllm"])
def test_what_is_pinned_for_gpus_has_run_on_one(name: str) -> None:
    (pin,) = requirements("server_gpu_requirements.txt")[name].specifier
    (following,) = requirements("server_gpu_next_requirements.txt")[name].specifier
    assert versions_that_ran(name) == {pin.version}
    assert following.version not in versions_that_ran(name)
    assert (ROOT / "server_gpu_next_requirements.txt").read_text().startswith("# NOT RUN ON A GPU YET")


def test_sentencepiece_finds_a_protobuf_that_is_new_enough() -> None:
    """Releases that need a newer one than vLLM allows do not say so: they fail at the first tokenizer."""
    ranges = requirements("server_requirements.txt")
    assert ranges["protobuf"].specifier.contains("6.33.6")
    assert not ranges["sentencepiece"].specifier.contains("0.2.3")


def test_make_installs_what_is_pinned() -> None:
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"\$\(PIP\) .*-r \w+\.txt", makefile)
    assert installs and re.search(r"^PIP := .* -c constraints\.txt$", makefile, re.M)
    assert Path(ROOT / "constraints.txt").is_file()
