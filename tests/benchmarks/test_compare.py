"""The comparison: its verdicts, its page, and all of it against real servers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.charts import Axis, Series, cumulative, line_chart, number
from benchmarks.comparison.plan import Outcome
from benchmarks.comparison.report import write_report
from benchmarks.comparison.servers import ROOT
from benchmarks.comparison.verdicts import verdict
from benchmarks.loadgen.endpoint import Endpoint, Record
from benchmarks.loadgen.measures import Objective, summarise
from benchmarks.loadgen.repeats import Result
from protocol.errors import unavailable
from server.api.app import create_app
from tests.api.fake import FakeService
from tests.serving import serving


def result(name: str, latencies: list[float], runs: int = 2) -> Result:
    """Ten requests, one after the other, of ten tokens each; a run for each latency."""
    made = Result(name, "exponential", "closed:1", [], [])
    for latency in latencies:
        records = [
            Record(i, i * latency, i * latency, (i + 1) * latency, (i + 1) * latency, [], 5, 10)
            for i in range(10)
        ]
        made.records.append(records)
        made.runs.append(summarise(records, Objective(latency=1.0)))
    return made


def verdict_of(*results: Result) -> str:
    endpoints = [Endpoint(one.endpoint, "http://x", "m") for one in results]
    outcome = Outcome(endpoints, Objective(latency=1.0), {"exponential": list(results)})
    return re.sub("<.*?>", "", verdict(outcome, "exponential"))


def test_verdict_names_the_better_one_with_its_figures() -> None:
    text = verdict_of(result("slow", [0.8, 0.81]), result("fast", [0.2, 0.21]))
    assert "fast generates 3.9× the tokens per second of slow" in text
    assert "3.9× its goodput" in text and "0.25× its 95th percentile" in text


def test_verdict_where_one_keeps_no_objective() -> None:
    assert "slow keeps the objective for no request" in verdict_of(
        result("fast", [0.2, 0.2]), result("slow", [3.0, 3.0])
    )


def test_verdict_does_not_tell_noise_for_a_difference() -> None:
    assert "no difference" in verdict_of(result("a", [0.5, 0.7]), result("b", [0.6, 0.8]))
    assert "no difference" in verdict_of(result("a", [0.5, 0.5]), result("b", [0.51, 0.51]))


def test_verdict_of_one() -> None:
    assert "alone generates 50 tokens/s" in verdict_of(result("alone", [0.2, 0.2]))


class Page(HTMLParser):
    """Collects what a page would load from elsewhere, and checks that its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert page.open == [] and page.loads == []
    assert "nan" not in text and "url(" not in text
    return page


def test_compare_further_endpoints(
    url: str, service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two servers of which one is slower, through the whole program."""
    slow = FakeService(service.tokenizer)
    slow.model_max_length = 4096
    slow.seconds_per_token, service.seconds_per_token = 0.004, 0.001
    report = tmp_path / "report.html"
    with serving(create_app(slow)) as slow_url:
        command = ["--strategies", "--beams", "2", "--repeats", "2", "--seconds", "0.05", "--sweep", "1", "4"]
        command += ["--traffic", "equal", "exponential", "--output", str(report)]
        command += ["--endpoint", f"quick={url},model=fake,api=v2"]
        command += ["--endpoint", f"sl<ow={slow_url},model=fake,stream=0"]
        assert compare.main(command) == 0
    assert str(report) in capsys.readouterr().out
    page = read_page(report.read_text())
    assert "quick generates" in page.text and "sl<ow" in page.text
    assert "Latency by throughput" in page.text and "Requests in the batch" in page.text
    figures = json.loads(report.with_suffix(".json").read_text())
    assert set(figures["saturated"]) == {"equal", "exponential"} and len(figures["sweep"]) == 2
    quick, other = figures["saturated"]["exponential"]
    assert quick["over_runs"]["latency.p50"]["median"] < other["over_runs"]["latency.p50"]["median"]
    assert quick["runs"][0]["requests"] == other["runs"][0]["requests"]


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
    command = ["--strategies", "--beams", "2", "--repeats", "1", "--seconds", "0.1", "--sweep", "1"]
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

    def lose(path: Path, outcome: Outcome, about: list[tuple[str, str]]) -> None:
        write_report(path, outcome, about)
        service.refusal = unavailable("lost")

    monkeypatch.setattr(compare, "write_report", lose)
    command = ["--strategies", "--beams", "2", "--repeats", "1", "--seconds", "0.05", "--sweep"]
    command += ["--traffic", "equal", "exponential", "--output", str(report)]
    assert compare.main([*command, "--endpoint", f"x={url},model=fake,api=v2"]) == 1
    assert f"report of what was measured: {report}" in capsys.readouterr().err
    assert set(json.loads(report.with_suffix(".json").read_text())["saturated"]) == {"equal"}


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
    series = [Series("a & b", [(1, 0.01), (2, 5)], 0, notes=["first"]), Series("one", [(1.5, 0.2)], 1)]
    svg = line_chart("Title <here>", Axis("x"), Axis("y", log=True), series)
    page = read_page(svg)
    assert "Title <here>" in page.text and "a & b: first" in page.text and "a & b: 2, 5" in page.text
    places = [tuple(map(float, p.split(","))) for p in re.findall(r'c0" points="([^"]*)"', svg)[0].split()]
    assert places[0][0] < places[1][0] and places[0][1] > places[1][1], "right is more, up is more"
    read_page(line_chart("Empty", Axis("x"), Axis("y"), []))
    read_page(line_chart("Zero", Axis("x"), Axis("y", log=True), [Series("a", [(0, 0)], 0)]))


def test_cumulative_and_numbers() -> None:
    points = cumulative([3.0, 1.0, 2.0, 4.0])
    assert points == [(1.0, 25.0), (2.0, 50.0), (3.0, 75.0), (4.0, 100.0)]
    assert cumulative([]) == []
    assert cumulative(list(map(float, range(1000))))[-1] == (999.0, 100.0)
    assert [number(value) for value in (0, 0.0123, 1.5, 12345.6)] == ["0", "0.0123", "1.5", "12,346"]
