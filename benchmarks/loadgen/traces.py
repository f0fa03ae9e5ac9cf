"""Requests that were recorded: formats of traces, told by the names of their fields.

====================  =======================================================================================
format                fields
====================  =======================================================================================
JSONL of this project ``at`` (seconds), ``prompt`` (text or token ids) or ``input_length``, ``output_length``,
                      ``options``
Mooncake, JSONL       ``timestamp`` (milliseconds), ``input_length``, ``output_length``, ``hash_ids`` (one for
                      each 512 tokens of the prompt: the same id, the same tokens)
Azure LLM, CSV        ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens``
BurstGPT, CSV         ``Timestamp`` (seconds), ``Request tokens``, ``Response tokens``
====================  =======================================================================================

Further fields are not read. Public traces hold lengths and no text, so prompts are made up. Requests without
prompt or answer tokens (BurstGPT's failures) cannot be sent; they are counted.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from benchmarks.loadgen.traffic import FIRST_ID, LAST_ID, Request

HASHED_TOKENS = 512
"""Tokens of a prompt that each of Mooncake's ``hash_ids`` stands for."""

_PROMPTS, _BLOCKS = 0, 1  # streams of random numbers


class TraceError(ValueError):
    """A trace that cannot be replayed."""


@dataclass(slots=True, frozen=True)
class Trace:
    """Requests in order of time; the first is due at 0."""

    requests: list[Request]
    left_out: int = 0
    """Requests without prompt or answer tokens."""

    def changed(self, *, speed: float = 1.0, scale: float = 1.0, count: int | None = None) -> Trace:
        """The first `count` requests, `speed` times as fast, their prompts and answers `scale` times as long.

        Prompts that are given as text stay as they are.
        """
        if speed <= 0 or scale <= 0:
            raise TraceError("speed and scale of a trace must be above 0")
        return replace(self, requests=[_changed(one, speed, scale) for one in self.requests[:count]])

    def parts(self, number: int, size: int) -> list[list[Request]]:
        """`number` stretches that follow each other, of `size` requests each, or fewer in a short trace.

        The first request of each is due at 0.
        """
        size = min(size, len(self.requests) // number)
        if size == 0:
            raise TraceError(f"the trace has {len(self.requests)} requests: too few for {number} runs")
        return [_from_zero(self.requests[i * size : (i + 1) * size]) for i in range(number)]


def read_trace(path: Path) -> Trace:
    """The trace in the file at `path`.

    Raises:
        TraceError: the format is not known, or a line lacks what it takes; names the line.
    """
    requests, left_out = [], 0
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, entry, read in _entries(path, file):
            try:
                request = read(entry, number)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise TraceError(f"{path}:{number}: {type(error).__name__}: {error}") from None
            if request.prompt and request.new_tokens > 0:
                requests.append(request)
            else:
                left_out += 1
    if not requests:
        raise TraceError(f"{path}: the trace is empty")
    return Trace(_from_zero(sorted(requests, key=_time)), left_out)


Read = Callable[[Any, int], Request]


def _entries(path: Path, file: TextIO) -> Iterator[tuple[int, Any, Read]]:
    """(line number, entry, what makes a request of it)."""
    if path.suffix.lower() != ".csv":
        yield from ((i, line, _json_line) for i, line in enumerate(file, start=1) if line.strip())
        return
    rows = csv.DictReader(file)
    names = set(rows.fieldnames or ())
    read = next((read for fields, read in CSV_FORMATS.items() if names.issuperset(fields)), None)
    if read is None:
        known = " or ".join(", ".join(fields) for fields in CSV_FORMATS)
        raise TraceError(f"{path}: its columns are {', '.join(sorted(names)) or 'none'}; it takes {known}")
    for row in rows:
        yield rows.line_num, row, read


def _json_line(line: str, number: int) -> Request:
    entry = json.loads(line)
    at = entry["at"] if "at" in entry else entry["timestamp"] / 1000
    prompt = entry.get("prompt")
    if prompt is None:
        prompt = _prompt(int(entry["input_length"]), number, entry.get("hash_ids", ()))
    return Request(prompt, int(entry["output_length"]), dict(entry.get("options", {})), float(at))


def _azure(row: dict[str, str], number: int) -> Request:
    moment = row["TIMESTAMP"].strip()
    if "." in moment:  # seven decimals; Python reads six
        whole, _, rest = moment.partition(".")
        decimals = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        moment = f"{whole}.{decimals[:6]}{rest[len(decimals) :]}"
    at = datetime.fromisoformat(moment).timestamp()
    return Request(_prompt(int(row["ContextTokens"]), number), int(row["GeneratedTokens"]), at=at)


def _burst_gpt(row: dict[str, str], number: int) -> Request:
    prompt = _prompt(int(row["Request tokens"]), number)
    return Request(prompt, int(row["Response tokens"]), at=float(row["Timestamp"]))


CSV_FORMATS: dict[tuple[str, ...], Read] = {
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _azure,
    ("Timestamp", "Request tokens", "Response tokens"): _burst_gpt,
}
"""What reads a row, by the columns that it takes."""


def _prompt(length: int, number: int, hash_ids: Sequence[int] = ()) -> list[int]:
    """A made-up prompt of request `number`; tokens that have a hash are those of the hash."""
    tokens: list[int] = []
    for hash_id in hash_ids:
        tokens += _made_up([_BLOCKS, hash_id], min(HASHED_TOKENS, length - len(tokens)))
    return tokens + _made_up([_PROMPTS, number], length - len(tokens))


def _made_up(seed: list[int], count: int) -> list[int]:
    made: list[int] = np.random.default_rng(seed).integers(FIRST_ID, LAST_ID, max(count, 0)).tolist()
    return made


def _time(request: Request) -> float:
    return request.at or 0.0


def _from_zero(requests: list[Request]) -> list[Request]:
    first = _time(requests[0])
    return [replace(request, at=_time(request) - first) for request in requests]


def _changed(request: Request, speed: float, scale: float) -> Request:
    prompt = request.prompt
    if not isinstance(prompt, str):
        prompt = prompt[: max(1, round(scale * len(prompt)))] if scale <= 1 else _longer(prompt, scale)
    new_tokens = max(1, round(scale * request.new_tokens))
    return replace(request, prompt=prompt, new_tokens=new_tokens, at=_time(request) / speed)


def _longer(prompt: list[int], scale: float) -> list[int]:
    wanted = round(scale * len(prompt))
    return (prompt * (wanted // len(prompt) + 1))[:wanted]
