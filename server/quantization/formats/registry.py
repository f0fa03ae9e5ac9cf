"""The weight formats that there are, and which one a checkpoint is read in.

Configurations are checked against the names here, by processes that never import torch: formats are
imported when they are needed.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json

if TYPE_CHECKING:
    from server.quantization.formats.base import OpenFormat, WeightFormat

FORMATS = {
    "awq": "server.quantization.formats.awq:AWQ",
    "compressed-tensors": "server.quantization.formats.compressed_tensors:CompressedTensors",
    "fp8": "server.quantization.formats.fp8:FP8",
    "gguf": "server.quantization.formats.gguf:GGUF",
    "gptq": "server.quantization.formats.gptq:GPTQ",
    "mxfp4": "server.quantization.formats.mxfp4:MXFP4",
}
"""Name → the `WeightFormat`, as ``module:class``."""

AUTO, NONE = "auto", "none"


def _check_name(value: str) -> str:
    accepted = (AUTO, NONE, *FORMATS)
    if value not in accepted:
        raise PydanticCustomError("weight_format", "{names}", {"names": ", ".join(map(repr, accepted))})
    return value


FormatName = Annotated[str, AfterValidator(_check_name)]
"""Type of the configuration key `quantization`: ``auto`` (what the checkpoint says), ``none``, or a name."""


def check_agreement(quantization: str | None, key: str, value: Any, format_name: str | None) -> None:
    """Compare `quantization` with the older key of the same meaning.

    Args:
        key, value: the older key.
        format_name: the format that it names; None: it names none.

    Raises:
        ValueError: they contradict each other.
    """
    if None not in (quantization, format_name) and quantization != format_name:
        said = "true" if value is True else repr(value)
        raise ValueError(f"quantization is {quantization!r}, but {key} is {said}: set one of the two")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a configuration says of a checkpoint's weights.

    Attributes:
        format: name of their format, `AUTO` or `NONE`; None: nothing, which quantized weights contradict.
        options: configuration keys of single formats, as far as they are set.
    """

    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


def find_format(path: Path, wanted: Quantization) -> WeightFormat | None:
    """The format that the checkpoint at `path` is to be read in; None: in none of them.

    Raises:
        ModelError: configuration and checkpoint disagree.
    """
    fields = config_fields(path)
    chosen = _named(wanted.format, path, fields) if wanted.format in FORMATS else _detected(path, fields)
    if chosen is not None and (wanted.format == NONE or (wanted.format is None and chosen.needs_consent)):
        raise ModelError(
            f"the weights in {path} are quantized ({chosen.name}): "
            f"set quantization to {chosen.name!r} or {AUTO!r}"
        )
    for key in wanted.options:
        if chosen is None or key not in chosen.options:
            served = "floats" if chosen is None else chosen.name
            raise ModelError(f"{key} is set, but the weights in {path} are read as {served}")
    return chosen


def open_format(path: Path, wanted: Quantization) -> OpenFormat | None:
    """The checkpoint at `path` in the format of `find_format`; None: its weights are floats.

    Raises:
        ModelError: configuration and checkpoint disagree, or it cannot be served.
    """
    chosen = find_format(path, wanted)
    if chosen is None:
        refuse_declared(path)
        return None
    return chosen.open(path, wanted.options)


def refuse_declared(path: Path) -> None:
    """Raise ModelError if the ``config.json`` in directory `path` says that the weights are quantized."""
    from server.quantization.formats.base import declared_method

    method = declared_method(config_fields(path))
    if method is not None:
        raise ModelError(
            f"{path / 'config.json'}: weights quantized by {method!r} are not supported "
            f"(supported: {', '.join(FORMATS)})"
        )


def config_fields(path: Path) -> dict[str, Any]:
    """The fields of the ``config.json`` in directory `path`; none where there is no such file."""
    file = path / "config.json"
    return read_json(file) if file.is_file() else {}


def _named(name: str, path: Path, fields: Mapping[str, Any]) -> WeightFormat:
    from server.quantization.formats.base import declared_method

    chosen, method = _load(name), declared_method(fields)
    if method is not None and not chosen.detect(path, fields):
        raise ModelError(
            f"quantization is {name!r}, but {path / 'config.json'} says that the weights are quantized "
            f"by {method!r}"
        )
    return chosen


def _detected(path: Path, fields: Mapping[str, Any]) -> WeightFormat | None:
    return next((found for name in FORMATS if (found := _load(name)).detect(path, fields)), None)


def _load(name: str) -> WeightFormat:
    chosen: WeightFormat = pkgutil.resolve_name(FORMATS[name])()
    return chosen
