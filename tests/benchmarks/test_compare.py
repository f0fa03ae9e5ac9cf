"""The comparison against real servers, and its charts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.charts import Axis, Series, cumulative, line_chart, number
from benchmarks.comparison.outcome import FRACTIONS, SATURATED, SWEPT, Outcome, Settings
from benchmarks.comparison.report import About, write_report
from benchmarks.comparison.servers import ROOT
from benchmarks.comparison.tuning import grid
from protocol.errors import unavailable
from server.api.app import create_app
from tests.api.fake import FakeService
from tests.benchmarks.html_page import read_page
from tests.serving import serving


def test_compare_further_endpoints(
    url: str, service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two servers of which one is slower, through the whole program."""
    slow = FakeService(service.tokenizer)
    slow.model_max_length = 4096
    slow.seconds_per_token, service.seconds_per_token = 0.012, 0.001
    report, trace = tmp_path / "report.html", tmp_path / "trace.csv"
    rows = [f"{i},20,{3 + i % 5}" for i in range(8)]
    trace.write_text("\n".join(["Timestamp,Request tokens,Response tokens", *rows, "9,20,0"]))
    with serving(create_app(slow)) as slow_url:
        command = ["--strategies", "--beams", "2", "--seeds", "2", "--requests", "6", "--sweep", "1", "0.5"]
        command += ["--traffic", "equal", "exponential", "--output", str(report)]
        command += ["--trace", str(trace), "--trace_speed", "100", "--slo", "latency=5"]
        command += ["--endpoint", f"quick={url},model=fake,api=v2"]
        command += ["--endpoint", f"sl<ow={slow_url},model=fake,stream=0"]
        assert compare.main(command) == 0
    printed = capsys.readouterr()
    assert str(report) in printed.out and "left out 1 requests without tokens" in printed.err
    assert f"3 of 5 written to {report}" in printed.err
    page = read_page(report.read_text())
    assert "quick generates" in page.text and "sl<ow" in page.text
    assert "trace.csv: " in page.text and "at the times of the trace" in page.text
    assert "Median latency by throughput" in page.text and "Requests in the batch" in page.text
    figures = json.loads(report.with_suffix(".json").read_text())
    assert set(figures["saturated"]) == {"equal", "exponential"} and len(figures["sweep"]) == 2
    quick, other = figures["saturated"]["exponential"]
    assert quick["over_runs"]["latency.p50"]["mean"] < other["over_runs"]["latency.p50"]["mean"]
    assert [run["requests"] for run in quick["runs"] + other["runs"]] == [6] * 4
    assert set(figures["replayed"]) == {"trace.csv"} and len(figures["replayed"]["trace.csv"][0]["runs"]) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_policies_beside_tuned_static_batching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real servers of the demo model."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    report = tmp_path / "report.html"
    command = ["--quick", "--beams", "2", "--requests", "4", "--seeds", "2", "--traffic", "equal", "--sweep"]
    command += ["--policies", "first_come", "decode_first", "--output", str(report)]
    assert compare.main(command) == 0
    page = read_page(report.read_text())
    assert "continuous batching (decode_first)" in page.text and "How static batching was tuned" in page.text
    figures = json.loads(report.with_suffix(".json").read_text())
    assert [(trial["size"], trial["interval"]) for trial in figures["tuning"]] == grid(2, quick=True)
    fastest = max(figures["tuning"], key=lambda trial: trial["over_runs"]["tokens_per_second"]["mean"])
    chosen = figures["configurations"]["static batching"]["batcher_config"]
    assert chosen["package_max_workload"] == fastest["size"]
    assert chosen["packaging_interval_seconds"] == fastest["interval"]
    assert not any(run["errors"] for result in figures["saturated"]["equal"] for run in result["runs"])
    assert figures["command"].startswith("export OMP_NUM_THREADS=1; ")


def test_an_endpoint_that_answers_nothing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--strategies", "--endpoint", f"x={url},model=unknown", "--traffic", "equal"]
    assert compare.main(command) == 1
    error = capsys.readouterr().err
    assert (
        "x answers no request: status 404: model_not_found" in error and "nothing was measured yet" in error
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_was_measured_when_it_is_interrupted_is_kept(
    url: str, service: FakeService, tmp_path: Path, number: signal.Signals
) -> None:
    report = tmp_path / "new" / "report.html"
    service.seconds_per_token = 0.002
    command = ["--strategies", "--beams", "2", "--seeds", "1", "--requests", "8", "--sweep", "1"]
    command += ["--traffic", "equal", "exponential", "beams", "--output", str(report)]
    command += ["--endpoint", f"x={url},model=fake,api=v2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.compare", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not report.with_suffix(".json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    service.seconds_per_token = 60.0  # it waits for the next traffic when it is interrupted
    time.sleep(0.5)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    if number is signal.SIGINT:
        assert process.returncode == 130 and f"report of what was measured: {report}" in error
        assert "Traceback" not in error
    assert "equal" in json.loads(report.with_suffix(".json").read_text())["saturated"]
    assert not list(report.parent.glob("*.part"))


def test_what_was_measured_before_an_endpoint_was_lost_is_kept(
    url: str,
    service: FakeService,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = tmp_path / "report.html"

    def lose(path: Path, outcome: Outcome, settings: Settings, about: About) -> None:
        write_report(path, outcome, settings, about)
        service.refusal = unavailable("lost")

    monkeypatch.setattr(compare, "write_report", lose)
    command = ["--strategies", "--beams", "2", "--seeds", "1", "--requests", "4", "--sweep"]
    command += ["--traffic", "equal", "exponential", "--output", str(report)]
    assert compare.main([*command, "--endpoint", f"x={url},model=fake,api=v2"]) == 1
    assert f"report of what was measured: {report}" in capsys.readouterr().err
    assert set(json.loads(report.with_suffix(".json").read_text())["saturated"]) == {"equal"}


def test_a_trace_that_is_too_short_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("Timestamp,Request tokens,Response tokens\n1,2,3\n")
    with pytest.raises(SystemExit):
        compare.main(["--trace", str(trace)])
    assert "the trace has 1 requests: too few for 5 runs" in capsys.readouterr().err


def test_how_much_is_run() -> None:
    """Five seeds of 200 requests for every traffic and rate, and less only where it is asked for."""
    whole = compare.settings_of(compare.build_parser().parse_args([]))
    assert (whole.seeds, whole.requests) == (5, 200)
    assert whole.steps() == [*SATURATED, *FRACTIONS]
    quick = compare.settings_of(compare.build_parser().parse_args(["--quick"]))
    assert (quick.seeds, quick.requests) == (5, 16) and quick.steps() == ["equal", SWEPT, 0.5, 1.0]
    asked = ["--quick", "--requests", "9", "--seeds", "2", "--traffic", "beams", "--sweep"]
    few = compare.settings_of(compare.build_parser().parse_args(asked))
    assert (few.seeds, few.requests, few.steps()) == (2, 9, ["beams"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--traffic", "beams", "--sweep", "0.3"], "--sweep raises the rate of 'exponential'"),
        (["--trace_speed", "2"], "there is none"),
    ],
)
def test_options_without_effect_are_refused(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main(options)
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x", "x=ftp://a", "x=http://a,api=v9", "x=http://a,modle=m"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--endpoint", text])


def test_a_server_that_does_not_start_is_told_with_its_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--model", str(tmp_path), "--strategies", "static", "--traffic", "equal"]) == 1
    error = capsys.readouterr().err
    assert "static batching did not start" in error and str(tmp_path) in error


def test_charts() -> None:
    lines = Series("a & b", [(1, 0.01), (2, 5)], 0, notes=["first"], ranges=[(0.005, 0.02), None])
    series = [lines, Series("one", [(1.5, 0.2)], 1)]
    svg = line_chart("Title <here>", Axis("x"), Axis("y", log=True), series)
    page = read_page(svg)
    assert "Title <here>" in page.text and "a & b: first" in page.text and "a & b: 2, 5" in page.text
    places = [tuple(map(float, p.split(","))) for p in re.findall(r'c0" points="([^"]*)"', svg)[0].split()]
    assert places[0][0] < places[1][0] and places[0][1] > places[1][1], "right is more, up is more"
    whisker = re.findall(r'class="whisker c0" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', svg)
    assert len(whisker) == 3, "a line and its two caps, for the one point that has a range"
    x1, low, x2, high = map(float, whisker[0])
    assert x1 == x2 == places[0][0] and high < places[0][1] < low
    read_page(line_chart("Empty", Axis("x"), Axis("y"), []))
    read_page(line_chart("Zero", Axis("x"), Axis("y", log=True), [Series("a", [(0, 0)], 0)]))


def test_cumulative_and_numbers() -> None:
    points = cumulative([3.0, 1.0, 2.0, 4.0])
    assert points == [(1.0, 25.0), (2.0, 50.0), (3.0, 75.0), (4.0, 100.0)]
    assert cumulative([]) == []
    assert cumulative(list(map(float, range(1000))))[-1] == (999.0, 100.0)
    assert [number(value) for value in (0, 0.0123, 1.5, 12345.6)] == ["0", "0.0123", "1.5", "12,346"]
