"""The load generator against real servers: what it records, and what it makes of that."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loadgen.__main__ import main
from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Api, Endpoint, Record
from benchmarks.loadgen.measures import Objective, ObjectiveError, parse_objective, summarise, tpot
from benchmarks.loadgen.run import run
from benchmarks.loadgen.selfcheck import stub_server
from benchmarks.loadgen.stub import TOKENS
from benchmarks.loadgen.traffic import Request
from tests.api.fake import FakeService


def endpoint(url: str, api: Api = "completions", stream: bool = True) -> Endpoint:
    return Endpoint("here", url, "fake", api, stream)


def requests(count: int, **options: Any) -> list[Request]:
    return [Request([5, 6, 7] if i % 2 else "Hi there", 4 + i, options) for i in range(count)]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", ["v2", "completions", "chat"])
async def test_records(url: str, service: FakeService, api: Api, stream: bool) -> None:
    service.seconds_per_token = 0.002
    wanted = [Request("Hi there", 4 + i) for i in range(6)]
    records = await run(endpoint(url, api, stream), wanted, parse_arrivals("all"))
    assert [record.error for record in records] == [None] * 6
    assert [record.new_tokens for record in records] == [4, 5, 6, 7, 8, 9]
    assert all(job.config.ignore_eos and job.stream == stream for job in service.jobs)
    for record in records:
        assert record.first is not None
        assert 0 <= record.due <= record.sent <= record.first <= record.end
        assert record.pieces == sorted(record.pieces)
        # of nine tokens the seventh is half a character, whose text comes with the next
        assert len(record.pieces) == (min(record.new_tokens, 7) - 1 + record.new_tokens // 9 if stream else 0)
        assert record.prompt_tokens == len(service.jobs[0].prompt_token_ids)


async def test_options_in_the_terms_of_each_api(url: str, service: FakeService) -> None:
    sampled = {"do_sample": True, "temperature": 0.8, "seed": 3}
    for api in ("v2", "completions"):
        for options in (sampled, {"num_beams": 4}, {}):
            service.jobs.clear()
            await run(endpoint(url, api), [Request([5], 3, dict(options))], parse_arrivals("all"))
            config = service.jobs[0].config
            assert {name: getattr(config, name) for name in options} == options
            assert config.do_sample == ("do_sample" in options)


async def test_failures_are_recorded_not_raised(url: str, service: FakeService, unused_tcp_port: int) -> None:
    service.fail_after = 3
    (record,) = await run(endpoint(url), requests(1), parse_arrivals("all"))
    assert record.error == "error event: engine_lost"
    (record,) = await run(endpoint(url), requests(1), parse_arrivals("all"))
    assert record.error == "status 503: engine_lost"
    (record,) = await run(endpoint(f"http://127.0.0.1:{unused_tcp_port}"), requests(1), parse_arrivals("all"))
    assert record.error is not None and record.error.startswith("ClientConnectorError")
    service.fail_after = 10**9
    service.seconds_per_token = 1.0
    (record,) = await run(endpoint(url), requests(1), parse_arrivals("all"), timeout=0.2)
    assert record.error is not None and "Timeout" in record.error


async def test_a_stream_without_its_end_is_an_error() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + b'data: {"choices":[{"text":"x"}]}\n\n'
        )
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (record,) = await run(endpoint(url), requests(1), parse_arrivals("all"))
    assert record.error == "the stream was cut"


async def test_an_answer_whose_tokens_have_no_text_is_answered(url: str, service: FakeService) -> None:
    service.reply = [0, 1, 0, 1]  # special tokens
    (record,) = await run(endpoint(url), [Request("Hi", 4)], parse_arrivals("all"))
    assert record.error is None and record.first is not None and record.new_tokens == 4
    assert Objective(ttft=30.0).kept(record)


async def test_closed_loop_has_as_many_at_once_as_clients(url: str, service: FakeService) -> None:
    service.seconds_per_token = 0.001
    live: list[int] = []
    submit = service.submit

    def counted(job: Any) -> Any:
        live.append(len(service.live))
        return submit(job)

    service.submit = counted  # type: ignore[method-assign]
    records = await run(endpoint(url), requests(30), parse_arrivals("closed:3"))
    assert len(records) == len(live) == 30
    assert max(live) == 2, "two others at most when a third is submitted"
    assert [record.index for record in records] == list(range(30))


async def test_open_loop_does_not_wait_for_answers(url: str, service: FakeService) -> None:
    service.seconds_per_token = 0.05
    records = await run(endpoint(url), requests(5), parse_arrivals("poisson:1000"))
    assert max(record.sent for record in records) < min(record.end for record in records)


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    with stub_server() as url:
        yield url


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_is_lost_at_full_speed(stub: str, stream: bool) -> None:
    endpoint = Endpoint("stub", stub, "stub", "v2", stream)
    records = await run(endpoint, [Request([5], TOKENS)] * 2000, parse_arrivals("closed:64"))
    assert {(record.error, record.new_tokens, len(record.pieces)) for record in records} == {
        (None, TOKENS, TOKENS - 1 if stream else 0)
    }


def records() -> list[Record]:
    """100 answers: number i is due at i / 10, begins 0.1 + i / 100 later, has i + 1 tokens in as
    many pieces 0.01 apart; every 10th fails."""
    made = []
    for i in range(100):
        at, first = i / 10, i / 10 + 0.1 + i / 100
        pieces = [first + 0.01 * k for k in range(1, i + 1)]
        end = pieces[-1] if pieces else first
        error = "status 500: x" if i % 10 == 9 else None
        made.append(Record(i, at, at + 0.001, first, end, pieces, 5, i + 1, error))
    return made


def test_figures_are_those_of_a_direct_computation() -> None:
    made = records()
    summary = summarise(made, Objective(latency=0.5))
    good = [record for record in made if record.index % 10 != 9]
    latencies = sorted(record.end - record.due for record in good)
    assert summary.requests == 100 and summary.errors == {"status 500: x": 10}
    assert summary.seconds == pytest.approx(max(record.end for record in made))
    assert summary.requests_per_second == pytest.approx(90 / summary.seconds)
    assert summary.tokens_per_second == pytest.approx(sum(r.new_tokens for r in good) / summary.seconds)
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    for name, cut in (("p50", 49), ("p90", 89), ("p95", 94), ("p99", 98)):
        assert summary.latency[name] == pytest.approx(cuts[cut])
    assert summary.latency["mean"] == pytest.approx(statistics.fmean(latencies))
    assert summary.latency["max"] == pytest.approx(max(latencies))
    firsts = [record.first - record.due for record in good if record.first is not None]
    assert summary.ttft["p50"] == pytest.approx(statistics.median(firsts))
    assert summary.tpot["mean"] == pytest.approx(0.01)
    assert summary.itl["p99"] == pytest.approx(0.01)
    assert tpot(made[0]) is None, "one token has no time per further token"
    in_time = [latency for latency in latencies if latency <= 0.5]
    assert 0 < len(in_time) < 90
    assert summary.goodput_requests == pytest.approx(len(in_time) / summary.seconds)
    assert summary.goodput_share == pytest.approx(len(in_time) / 100)
    assert summary.lag["max"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", 90),
        ("ttft=0.6", 46),
        ("tpot=0.005", 1),  # one token has no time per token to exceed
        ("latency=0.5", 18),
        ("base=0.1,per_token=0.02", 90),
        ("base=0,per_token=0.02", 0),
        ("ttft=0.6,latency=0.5", 18),
    ],
)
def test_objectives(text: str, kept: int) -> None:
    objective = parse_objective(text)
    assert sum(objective.kept(record) for record in records()) == kept
    assert str(objective)


@pytest.mark.parametrize("text", ["ttft", "ttft=fast", "speed=3"])
def test_what_is_no_objective(text: str) -> None:
    with pytest.raises(ObjectiveError):
        parse_objective(text)


def test_command_line(
    url: str, service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, raw, plots = (tmp_path / name for name in ("figures.json", "raw.jsonl", "plots.html"))
    command = ["--url", url, "--model", "fake", "--traffic", "equal", "--answer", "uniform:2:9", "--quiet"]
    command += ["--requests", "12", "--repeats", "2", "--warm_up", "3", "--slo", "latency=30"]
    command += ["--arrivals", "closed:4", "--arrivals", "poisson:500"]
    command += ["--output", str(output), "--records", str(raw), "--plots", str(plots)]
    assert main(command) == 0
    assert len(service.jobs) == 2 * (3 + 2 * 12)
    printed = capsys.readouterr()
    assert "client lag: at most " in printed.err
    head, *rows = printed.out.splitlines()
    assert head.split()[:3] == ["endpoint", "traffic", "arrivals"] and len(rows) == 2
    figures = json.loads(output.read_text())
    lines = [json.loads(line) for line in raw.read_text().splitlines()]
    for result in figures:
        assert len(result["runs"]) == 2
        for number, one in enumerate(result["runs"]):
            mine = [r for r in lines if (r["arrivals"], r["run"]) == (result["arrivals"], number)]
            latencies = [r["end"] - r["due"] for r in mine]
            assert len(mine) == one["requests"] == 12
            assert one["latency"]["p50"] == pytest.approx(statistics.median(latencies))
            p95 = statistics.quantiles(latencies, n=100, method="inclusive")[94]
            assert one["latency"]["p95"] == pytest.approx(p95)
        ranks = [run["latency"]["p95"] for run in result["runs"]]
        found = result["over_runs"]["latency.p95"]
        assert found["mean"] == pytest.approx(statistics.fmean(ranks)) and found["runs"] == 2
        assert found["low"] < min(ranks) <= max(ranks) < found["high"]
        assert len(result["client_lag_p99"]) == 2
    assert plots.read_text().count("<svg") == 5


def test_command_line_tells_errors(
    url: str, service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.fail_after = 0
    command = ["--url", url, "--model", "fake", "--requests", "3", "--repeats", "1", "--quiet"]
    assert main(command) == 1
    assert "3 × status 503: engine_lost" in capsys.readouterr().err
    for wrong in (
        ["--answer", "fixd:3"],
        ["--arrivals", "often"],
        ["--slo", "speed=1"],
        ["--trace_scale", "2"],
    ):
        with pytest.raises(SystemExit) as left:
            main([*command, *wrong])
        assert left.value.code == 2


def test_trace_on_the_command_line(url: str, service: FakeService, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"at": 0, "prompt": "Hi", "output_length": 3}\n{"at": 0.01, "prompt": "Ho", "output_length": 2}'
    )
    arguments = ["--trace", str(trace), "--repeats", "1", "--warm_up", "0", "--quiet"]
    assert main(["--url", url, "--model", "fake", *arguments]) == 0
    assert [job.config.max_new_tokens for job in service.jobs] == [3, 2]
    output = tmp_path / "figures.json"
    arguments += ["--arrivals", "closed:1", "--output", str(output)]
    assert main(["--url", url, "--model", "fake", *arguments]) == 0
    assert json.loads(output.read_text())[0]["arrivals"] == "closed:1"
