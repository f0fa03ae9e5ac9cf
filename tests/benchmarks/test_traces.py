"""Recorded traffics: this project's format and the public ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.traces import HASHED_TOKENS, Trace, TraceError, read_trace
from benchmarks.loadgen.traffic import Request


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def lengths(trace: Trace) -> list[tuple[float | None, int, int]]:
    return [(one.at, len(one.prompt), one.new_tokens) for one in trace.requests]


def test_own_format(tmp_path: Path) -> None:
    lines = [
        {"at": 12.5, "prompt": "Hi", "output_length": 3, "options": {"num_beams": 2}},
        {"timestamp": 10_500, "input_length": 7, "output_length": 5},
    ]
    path = written(tmp_path / "trace.jsonl", *map(json.dumps, lines), "")
    first, second = read_trace(path).requests
    assert (first.at, len(first.prompt), first.new_tokens) == (0.0, 7, 5)
    assert (second.at, second.prompt, second.options) == (2.0, "Hi", {"num_beams": 2})
    assert parse_arrivals("trace").due([first, second], 0) == [0.0, 2.0]


def test_mooncake_shares_what_has_the_same_hash(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 0, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1500, "output_length": 20, "hash_ids": [0, 1, 3]},
    ]
    path = written(tmp_path / "mooncake_trace.jsonl", *map(json.dumps, lines))
    trace = read_trace(path)
    assert lengths(trace) == [(0.0, 1100, 50), (3.0, 1500, 20)]
    a, b = (one.prompt for one in trace.requests)
    assert a[: 2 * HASHED_TOKENS] == b[: 2 * HASHED_TOKENS]
    assert a[2 * HASHED_TOKENS :] != b[2 * HASHED_TOKENS : 1100]
    assert a[:HASHED_TOKENS] != a[HASHED_TOKENS : 2 * HASHED_TOKENS]


@pytest.mark.parametrize(
    "moments",
    [
        ("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.9305900"),
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:04.259930+00:00"),
        ("2024-05-10 00:00:01", "2024-05-10 00:00:05.25"),
    ],
)
def test_azure(tmp_path: Path, moments: tuple[str, str]) -> None:
    rows = [f"{moments[1]},396,109", f"{moments[0]},374,44", f"{moments[1]},0,7"]
    path = written(tmp_path / "conv.csv", "TIMESTAMP,ContextTokens,GeneratedTokens", *rows)
    trace = read_trace(path)
    assert lengths(trace) == [(0.0, 374, 44), (pytest.approx(4.25), 396, 109)]
    assert trace.left_out == 1


@pytest.mark.parametrize("more", ["", "Session ID,Elapsed time,"])
def test_burst_gpt(tmp_path: Path, more: str) -> None:
    between = "1,2.5," if more else ""
    path = written(
        tmp_path / "BurstGPT_1.csv",
        f"Timestamp,{more}Model,Request tokens,Response tokens,Total tokens,Log Type",
        f"5,{between}ChatGPT,472,18,490,Conversation log",
        f"45,{between}ChatGPT,1087,230,1317,Conversation log",
        f"118,{between}GPT-4,417,0,417,API log",
    )
    trace = read_trace(path)
    assert lengths(trace) == [(0.0, 472, 18), (40.0, 1087, 230)]
    assert trace.left_out == 1, "a request that failed has no answer"


def test_prompts_are_the_same_every_time(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "Timestamp,Request tokens,Response tokens", "0,20,3", "1,20,3")
    one, other = read_trace(path), read_trace(path)
    assert one == other and one.requests[0].prompt != one.requests[1].prompt


@pytest.mark.parametrize("bad", ['{"at": 1}', "{", '{"output_length": 1}', "3"])
def test_a_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = written(tmp_path / "trace.jsonl", '{"at": 1, "prompt": "a", "output_length": 1}', bad)
    with pytest.raises(TraceError, match=r"trace\.jsonl:2: "):
        read_trace(path)


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "Timestamp,Request tokens,Response tokens", "0,20,3", "1,many,3")
    with pytest.raises(TraceError, match=r"t\.csv:3: .*many"):
        read_trace(path)


def test_what_is_no_trace(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "time,tokens", "0,20")
    with pytest.raises(TraceError, match="its columns are time, tokens; it takes TIMESTAMP, ContextTokens"):
        read_trace(path)
    with pytest.raises(TraceError, match="empty"):
        read_trace(written(tmp_path / "t.jsonl", ""))
    with pytest.raises(TraceError, match="empty"):
        read_trace(written(tmp_path / "u.csv", "Timestamp,Request tokens,Response tokens"))


def test_faster_and_shorter() -> None:
    trace = Trace([Request([5] * 100, 10, at=0.0), Request("as it is", 3, at=8.0), Request([6], 1, at=9.0)])
    changed = trace.changed(speed=4, scale=0.1, count=2)
    assert lengths(changed) == [(0.0, 10, 1), (2.0, 8, 1)]
    assert lengths(trace.changed(scale=2.5))[0] == (0.0, 250, 25)
    with pytest.raises(TraceError, match="above 0"):
        trace.changed(speed=0)


def test_stretches_follow_each_other() -> None:
    trace = Trace([Request([5], i + 1, at=float(i * i)) for i in range(10)])
    parts = trace.parts(3, 200)
    assert [[one.new_tokens for one in part] for part in parts] == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert [one.at for one in parts[1]] == [0.0, 7.0, 16.0]
    assert [len(part) for part in trace.parts(3, 2)] == [2, 2, 2]
    with pytest.raises(TraceError, match="10 requests: too few for 11 runs"):
        trace.parts(11, 1)
