"""Messages between the HTTP side and the engine process.

MessagePack over one socket pair; every message is one of the structs below. While the engine loads, it is
first sent what `checkpoint_reader` reads of the checkpoint, pickled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from server.continuous_batching.outputs import StepOutput
from server.continuous_batching.stats import EngineStats
from server.scheduling.limits import Limits
from server.scheduling.params import SamplingParams


class Add(msgspec.Struct, tag=True):
    """Queue a request.

    `emitted` and `finished_answers` continue answers that another server began; `patience` is how
    many seconds the request may wait before it starts.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    priority: int = 0
    stream: bool = False
    patience: float | None = None
    emitted: list[list[int]] | None = None
    finished_answers: list[int] = []
    cache_salt: bytes = b""


class Cancel(msgspec.Struct, tag=True):
    """Forget a request."""

    request_id: str


class Loading(msgspec.Struct, tag=True):
    """A phase of the start begins; `begun`: when, by the system's monotonic clock."""

    phase: str
    begun: float


class Ready(msgspec.Struct, tag=True):
    """The model is loaded; `fingerprint` is that of its checkpoint."""

    limits: Limits
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    capabilities: dict[str, Any]
    fingerprint: str


class Refused(msgspec.Struct, tag=True):
    """The model cannot be served; the process ends."""

    message: str


class Report(msgspec.Struct, tag=True):
    """What happened in a step (or to a request that was refused); stats now and then."""

    output: StepOutput
    stats: EngineStats | None = None


ToEngine = Add | Cancel
FromEngine = Loading | Ready | Refused | Report

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
