"""How a GPTQ checkpoint was quantised, as its makers write it down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128, -1)
PACKED_BITS = 32
"""Codes are packed in int32."""


class GPTQError(Exception):
    """A GPTQ checkpoint that cannot be served; the message is one line for the operator."""


@dataclass(frozen=True, slots=True)
class GPTQConfig:
    """What all quantised layers of a checkpoint have in common.

    Attributes:
        bits: of a weight's code.
        group_size: inputs that share a scale and a zero point; -1: all of a layer.
        desc_act: groups were formed in the order of activation size, not of position.
        sym: zero points are all in the middle of the codes.
        zero_offset: what is added to a stored zero point: 1 in format v1, 0 in v2.
    """

    bits: int
    group_size: int
    desc_act: bool
    sym: bool
    zero_offset: int

    @property
    def codes_per_word(self) -> int:
        """Codes in an int32."""
        return PACKED_BITS // self.bits

    def groups(self, inputs: int) -> int:
        """Groups of a layer with so many inputs."""
        return 1 if self.group_size == -1 else inputs // self.group_size

    @classmethod
    def parse(cls, fields: Mapping[str, Any], source: Path) -> GPTQConfig:
        """Check the fields of a `quantize_config.json` or `quantization_config`.

        Raises:
            GPTQError: another method, a variant that is not supported, or a value out of range.
        """
        _refuse_other_formats(fields, source)
        bits, group_size = fields.get("bits"), fields.get("group_size")
        if bits not in BITS:
            raise GPTQError(f"{source}: bits is {bits!r}, supported: {_listed(BITS)}")
        if group_size not in GROUP_SIZES:
            raise GPTQError(f"{source}: group_size is {group_size!r}, supported: {_listed(GROUP_SIZES)}")
        return cls(
            bits=bits,
            group_size=group_size,
            desc_act=bool(fields.get("desc_act", False)),
            sym=bool(fields.get("sym", True)),
            zero_offset=0 if _format(fields) == "gptq_v2" else 1,
        )


def _format(fields: Mapping[str, Any]) -> str:
    return str(fields.get("checkpoint_format") or fields.get("format") or "gptq")


def _refuse_other_formats(fields: Mapping[str, Any], source: Path) -> None:
    method = fields.get("quant_method") or fields.get("method") or "gptq"
    if method != "gptq":
        raise GPTQError(f"{source}: quantisation method {method!r} is not supported (supported: gptq)")
    if fields.get("is_marlin_format") or _format(fields) not in ("gptq", "gptq_v2"):
        name = "marlin" if fields.get("is_marlin_format") else _format(fields)
        raise GPTQError(f"{source}: format {name!r} is not supported (supported: gptq, gptq_v2)")
    if fields.get("pack_dtype", "int32") != "int32":
        raise GPTQError(f"{source}: pack_dtype {fields['pack_dtype']!r} is not supported (supported: int32)")
    if fields.get("lm_head"):
        raise GPTQError(f"{source}: a quantised lm_head is not supported")
    for rule, change in (fields.get("dynamic") or {}).items():
        if change and not rule.startswith("-:"):
            raise GPTQError(f"{source}: layers quantised otherwise ('dynamic', {rule!r}) are not supported")
    adapter = fields.get("adapter") or (fields.get("meta") or {}).get("adapter")
    if adapter:
        raise GPTQError(f"{source}: an adapter beside the weights is not supported")


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        GPTQError: no such file, or something else in it.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GPTQError(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise GPTQError(f"{path} does not hold a JSON object")
    return fields
