"""How a GPTQ checkpoint was quantized, as its makers write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError

BITS = (4, 8)
GROUP_SIZES = (32, 64, 128, -1)
PACKED_BITS = 32
"""Codes are packed in int32."""


@dataclass(frozen=True, slots=True)
class GPTQConfig:
    """What all quantized layers of a checkpoint have in common.

    Attributes:
        bits: of a weight's code.
        group_size: inputs that share a scale and a zero point; -1: all of a layer.
        desc_act: groups were formed in the order of activation size, not of position.
        sym: zero points are all in the middle of the codes; None: the checkpoint does not say.
        zero_offset: what is added to a stored zero point: 1 in format v1, 0 in v2.
    """

    bits: int
    group_size: int
    desc_act: bool
    sym: bool | None
    zero_offset: int

    @property
    def codes_per_word(self) -> int:
        """Codes in an int32."""
        return PACKED_BITS // self.bits

    def groups(self, inputs: int) -> int:
        """Groups of a layer with `inputs` inputs."""
        return 1 if self.group_size == -1 else inputs // self.group_size

    @classmethod
    def parse(cls, fields: Mapping[str, Any], source: Path) -> GPTQConfig:
        """Check the fields of a `quantize_config.json` or `quantization_config`.

        Raises:
            ModelError: another method, a variant that is not supported, or a value out of range.
        """
        _refuse_other_formats(fields, source)
        return cls(
            bits=_one_of(BITS, fields, "bits", source),
            group_size=_one_of(GROUP_SIZES, fields, "group_size", source),
            desc_act=bool(_flag(fields, "desc_act", source)),
            sym=_flag(fields, "sym", source),
            zero_offset=0 if _format(fields) == "gptq_v2" else 1,
        )


def _one_of(accepted: tuple[int, ...], fields: Mapping[str, Any], key: str, source: Path) -> int:
    value = fields.get(key)
    if type(value) is not int or value not in accepted:
        raise ModelError(f"{source}: {key} is {value!r}, supported: {', '.join(map(str, accepted))}")
    return value


def _flag(fields: Mapping[str, Any], key: str, source: Path) -> bool | None:
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{source}: {key} is {value!r}, expected true or false")
    return value


def _format(fields: Mapping[str, Any]) -> str:
    return str(fields.get("checkpoint_format") or fields.get("format") or "gptq")


def _refuse_other_formats(fields: Mapping[str, Any], source: Path) -> None:
    method = fields.get("quant_method") or fields.get("method") or "gptq"
    if method != "gptq":
        raise ModelError(f"{source}: quantization method {method!r} is not supported (supported: gptq)")
    one, other = fields.get("checkpoint_format"), fields.get("format")
    if one and other and one != other:
        raise ModelError(f"{source}: checkpoint_format is {one!r}, but format is {other!r}")
    if fields.get("is_marlin_format") or _format(fields) not in ("gptq", "gptq_v2"):
        name = "marlin" if fields.get("is_marlin_format") else _format(fields)
        raise ModelError(f"{source}: format {name!r} is not supported (supported: gptq, gptq_v2)")
    if fields.get("pack_dtype", "int32") != "int32":
        raise ModelError(f"{source}: pack_dtype {fields['pack_dtype']!r} is not supported (supported: int32)")
    if fields.get("lm_head"):
        raise ModelError(f"{source}: a quantized lm_head is not supported")
    for rule, change in (fields.get("dynamic") or {}).items():
        if change and not rule.startswith("-:"):
            raise ModelError(f"{source}: layers quantized otherwise ('dynamic', {rule!r}) are not supported")
    adapter = fields.get("adapter") or (fields.get("meta") or {}).get("adapter")
    if adapter:
        raise ModelError(f"{source}: an adapter beside the weights is not supported")
