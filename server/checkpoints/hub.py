"""Finds a checkpoint by the name that a configuration gives it: a path, or a model of a hub to download.

Names of the Hugging Face hub are ``owner/name``, or ``owner/name/file.gguf`` for one file of a model; where
the environment sets ``HF_ENDPOINT``, that mirror is asked. ``modelscope:owner/name`` is one of ModelScope.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from server.checkpoints.errors import ModelError
from server.checkpoints.gguf.header import SUFFIX as GGUF_SUFFIX
from server.checkpoints.gguf.header import parts_of
from utils.messages import one_line

MODELSCOPE = "modelscope:"
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "additional_chat_templates/*")
_WEIGHTS = ("*.safetensors", "*.bin")
"""The first of these that a model has."""


def find_checkpoint(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The directory or the GGUF file that `name` stands for.

    Args:
        name: a path, or a name of a hub.
        revision: branch or commit on the hub; None: its default.
        weights: false: a tokenizer is all that is wanted.

    Raises:
        ModelError: it is not here and cannot be downloaded.
    """
    path = Path(name)
    if path.exists():
        return path
    if name.startswith(MODELSCOPE):
        return _from_modelscope(name.removeprefix(MODELSCOPE), revision, weights)
    if path.is_absolute():
        raise ModelError(f"{path} does not exist")
    try:
        return _from_hub(name, revision, weights)
    except ModelError:
        raise
    except Exception as error:  # of the hub's client, of whatever it connects by, or of the disk
        raise ModelError(_explain(name, error)) from error


def files_of(names: Sequence[str], *, weights: bool = True) -> list[str]:
    """Those files of a repository that a server reads.

    Args:
        names: paths of all its files.
    """
    found = [name for name in names if _matches(name, _TEXTS)]
    if weights:
        kinds = ([name for name in names if _matches(name, [kind])] for kind in _WEIGHTS)
        found += next((kind for kind in kinds if kind), [])
    return sorted(found)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """As a shell has it: what a directory holds is not meant by a pattern without one."""
    return any(fnmatch(name, each) and name.count("/") == each.count("/") for each in patterns)


def _from_hub(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if name.endswith(GGUF_SUFFIX):
        owner, model, *inside = name.split("/")
        parts = parts_of(Path(*inside))
        paths = [hf_hub_download(f"{owner}/{model}", str(part), revision=revision) for part in parts]
        return Path(paths[0])
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        files = HfApi().list_repo_files(name, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception as unreachable:
        try:
            # the client asks for all files that match: those of directories were never downloaded
            wanted = [*_TEXTS, *_WEIGHTS[:1]] if weights else [*_TEXTS]
            place = snapshot_download(
                name, revision=revision, allow_patterns=wanted, ignore_patterns="*/*", local_files_only=True
            )
            return Path(place)
        except Exception:
            raise unreachable from None
    ggufs = [file for file in files if file.endswith(GGUF_SUFFIX)]
    wanted = files_of(files, weights=weights)
    if weights and ggufs and not any(_matches(file, _WEIGHTS) for file in wanted):
        raise ModelError(
            f"{name} holds GGUF files: name one of them, e.g. {name}/{ggufs[0]} (all: {', '.join(ggufs)})"
        )
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))


def _explain(name: str, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"{name} at {hub} wants its licence accepted there, and a token of that account in HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} at {hub} has no such revision: {one_line(error)}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{name!r} is neither a path here nor a model at {hub} (a private one needs HF_TOKEN)"
    return (
        f"{name!r} is no path here, and cannot be downloaded from {hub} ({one_line(error)[:200]}): "
        f"where there is a network, `hf download {name} --local-dir DIR` gets it, and DIR is its path then; "
        "HF_ENDPOINT names a mirror"
    )


def _from_modelscope(name: str, revision: str | None, weights: bool) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{MODELSCOPE}{name} is downloaded by the package modelscope: install it (pip install modelscope)"
        ) from error
    try:
        for kind in _WEIGHTS if weights else ():
            place = Path(snapshot_download(name, revision=revision, allow_patterns=[*_TEXTS, kind]))
            if any(place.glob(kind)):
                return place
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*_TEXTS]))
    except Exception as error:
        raise ModelError(
            f"{name} cannot be downloaded from ModelScope ({one_line(error)[:200]}): where there is a "
            f"network, `modelscope download --model {name} --local_dir DIR` gets it, and DIR is its path then"
        ) from error
