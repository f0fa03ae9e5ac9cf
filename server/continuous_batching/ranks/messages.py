"""What rank 0 and the other ranks tell each other: MessagePack, and nothing that runs anyone's code.

Of a step only what is not empty is sent; arrays are their type, shape and bytes.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

import msgspec
import numpy as np

from server.scheduling.step import SampleInput, StepInput

Kind = Literal["swap", "copy", "launch"]
"""Methods of a worker that take a step."""


class Call(msgspec.Struct, tag=True):
    """Do this with the step."""

    kind: Kind
    step: StepInput


class Sample(msgspec.Struct, tag=True):
    """Choose the tokens of the step that was launched last."""

    sample: SampleInput


class Ask(msgspec.Struct, tag=True):
    """Did the last call fail? Rank 0 asks if it failed there: then it must have failed everywhere."""


class End(msgspec.Struct, tag=True):
    """There is nothing more to do."""


class Read(msgspec.Struct, tag=True):
    """The weights are in memory; next, the ranks join."""


class Loaded(msgspec.Struct, tag=True):
    """Ready for steps, with so many bytes of weights on this device."""

    device: str
    weights_bytes: int


class Refused(msgspec.Struct, tag=True):
    """The model cannot be served; the process ends."""

    message: str


class State(msgspec.Struct, tag=True):
    """Answers `Ask`."""

    failed: bool


ToRank = Call | Sample | Ask | End
FromRank = Read | Loaded | Refused | State


def _array(value: Any) -> tuple[str, tuple[int, ...], bytes]:
    assert isinstance(value, np.ndarray), type(value)
    return value.dtype.str, value.shape, value.tobytes()


def _restored(kind: type, value: Any) -> np.ndarray:
    dtype, shape, data = value
    return np.frombuffer(bytearray(data), dtype).reshape(shape)


def _said(message: StepInput | SampleInput) -> dict[str, Any]:
    """The fields that are not empty, as all are by default."""
    return {name: value for name in _FIELDS[type(message)] if len(value := getattr(message, name))}


_FIELDS = {kind: [field.name for field in fields(kind)] for kind in (StepInput, SampleInput)}

encode = msgspec.msgpack.Encoder(enc_hook=_array).encode
decode_to_rank = msgspec.msgpack.Decoder(ToRank, dec_hook=_restored).decode
decode_from_rank = msgspec.msgpack.Decoder(FromRank).decode


def encode_call(kind: Kind, step: StepInput) -> bytes:
    """A `Call`."""
    return encode({"type": "Call", "kind": kind, "step": _said(step)})


def encode_sample(sample: SampleInput) -> bytes:
    """A `Sample`."""
    return encode({"type": "Sample", "sample": _said(sample)})
