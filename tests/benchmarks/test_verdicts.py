"""What a comparison says: verdicts, cards, tuning, the page of it all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.comparison.about import model_facts
from benchmarks.comparison.headline import cards
from benchmarks.comparison.outcome import Outcome, Settings
from benchmarks.comparison.plan import seconds_left
from benchmarks.comparison.report import About, write_report
from benchmarks.comparison.sampler import Samples
from benchmarks.comparison.servers import ROOT
from benchmarks.comparison.tuning import Trial, best, grid
from benchmarks.comparison.verdicts import best_of, capacity, verdict
from benchmarks.loadgen.endpoint import Endpoint, Record
from benchmarks.loadgen.measures import Objective
from benchmarks.loadgen.repeats import Result
from tests.benchmarks.html_page import read_page


def result(name: str, latencies: list[float], runs: int = 2) -> Result:
    """Ten requests, one after the other, of ten tokens each; a run for each latency."""
    made = Result(name, "exponential", "closed:1")
    for latency in latencies:
        records = [
            Record(i, i * latency, i * latency, (i + 1) * latency, (i + 1) * latency, [], 5, 10)
            for i in range(10)
        ]
        made.add(records, Objective(latency=1.0), client_lag=0.002)
    return made


def outcome_of(*results: Result) -> Outcome:
    endpoints = [Endpoint(one.endpoint, "http://x", "m") for one in results]
    return Outcome(endpoints, Objective(latency=1.0), {"exponential": list(results)})


def verdict_of(*results: Result) -> str:
    return re.sub("<.*?>", "", verdict(outcome_of(*results), "exponential"))


def test_verdict_names_the_better_one_with_its_figures() -> None:
    text = verdict_of(result("slow", [0.8, 0.81, 0.79]), result("fast", [0.2, 0.21, 0.2]))
    assert re.search(r"fast generates 3\.9× \(3\.\d to 4\.\d\) the tokens per second of slow", text)
    assert "3.9× (3." in text and "its goodput" in text
    assert "at 0.25× (0.2" in text and "its 95th percentile of latency" in text


def test_verdict_where_one_keeps_no_objective() -> None:
    assert "slow keeps the objective for no request" in verdict_of(
        result("fast", [0.2, 0.21]), result("slow", [3.0, 3.1])
    )


def test_verdict_does_not_tell_noise_for_a_difference() -> None:
    assert "no difference between b and a" in verdict_of(
        result("a", [0.5, 0.7, 0.6]), result("b", [0.6, 0.5, 0.65])
    )
    assert "no difference" in verdict_of(result("a", [0.2]), result("b", [0.9])), "one run proves nothing"


def test_a_small_difference_is_told_where_it_is_sure() -> None:
    """Seeds differ much, but on each of them one is 3 % faster: runs are paired."""
    slow = [0.2, 0.4, 0.6, 0.3, 0.5]
    text = verdict_of(result("a", slow), result("b", [one * 0.97 for one in slow[:4]] + [slow[4] * 0.971]))
    assert "b generates 1.03× (1.03 to 1.03)" in text


def test_the_best_figure_stands_out_only_where_it_differs() -> None:
    near = [result("a", [0.5, 0.7, 0.6]), result("b", [0.6, 0.5, 0.65])]
    far = [result("a", [0.5, 0.7, 0.6]), result("b", [0.1, 0.11, 0.1])]
    for figure, lowest in (("tokens_per_second", False), ("latency.p95", True)):
        assert best_of(near, figure, lowest=lowest) is None
        assert best_of(far, figure, lowest=lowest) == 1
    assert best_of(far[:1], "tokens_per_second", lowest=False) is None


def test_capacity_ends_at_the_first_rate_that_is_not_served() -> None:
    outcome = outcome_of(result("a", [0.2, 0.2]), result("b", [0.2, 0.2]))
    good, bad = result("x", [0.2, 0.2]), result("x", [3.0, 3.0])
    outcome.sweep = {1.0: [good, bad], 2.0: [good, bad], 4.0: [bad, bad], 8.0: [good, good]}
    assert capacity(outcome) == [2.0, None]


def test_cards_of_a_difference_and_of_none() -> None:
    outcome = outcome_of(result("slow", [0.8, 0.81, 0.79]), result("fa<st", [0.2, 0.21, 0.2]))
    throughput, goodput, latency = cards(outcome)
    assert throughput.value == "3.9×" and "from fa&lt;st as from slow" in throughput.what
    assert "(95 % interval 3." in throughput.what
    assert goodput.value == "4.92" and latency.value == "0.203 s"
    assert [line[0] for line in latency.lines] == ["slow", "fa<st"] and latency.lines[0][2] == (
        "0.800 ±0.025 s"
    )
    none = cards(outcome_of(result("a", [0.5, 0.7, 0.6]), result("b", [0.6, 0.5, 0.65])))
    assert none[0].value == "none" and "no difference" in none[2].what
    (alone, *_) = cards(outcome_of(result("alone", [0.2, 0.2])))
    assert alone.value == "50"
    assert cards(Outcome([], Objective())) == []


def test_tuning_takes_the_fastest_and_no_more_memory() -> None:
    places = grid(16, quick=False)
    assert len(places) == 9 and {size for size, _ in places} == {4, 8, 16}
    assert grid(1, quick=True) == [(1, 0.02)]
    trials = [
        Trial(size, wait, result("static", [0.1 * size + wait] * 2))
        for size, wait in [(4, 0.1), (2, 0.02), (8, 0.0)]
    ]
    assert best(trials) is trials[1]


def test_page_of_everything(tmp_path: Path) -> None:
    """Cards first, then the chart, then what was run; the tuning is shown; unfinished runs say so."""
    outcome = outcome_of(result("continuous", [0.2, 0.21]), result("static", [0.8, 0.81]))
    outcome.samples = {"exponential": [Samples(), Samples()]}
    outcome.trials = [
        Trial(size, wait, result("static", [0.1 * size + wait, 0.1 * size + wait]))
        for size in (2, 4)
        for wait in (0.0, 0.02)
    ]
    outcome.steps, outcome.seconds_left = 3, 200.0
    about = About(
        "make bench", [("commit", "abc")], {"static": {"batcher_config": {"package_max_workload": 2}}}
    )
    report = tmp_path / "report.html"
    write_report(report, outcome, Settings(4, requests=10, seeds=2), about)
    text = read_page(report.read_text()).text
    places = [text.index(part) for part in ("3.9×", "Output tokens per second", "What was run", "make bench")]
    assert places == sorted(places)
    assert "So far 1 of 3 traffics and rates; the rest takes about 3\N{NO-BREAK SPACE}min." in text
    assert "A short run: 10 requests with each of 2 seeds" in text
    assert "with the best, 2 sequences and 0 s" in text and "interval 0.02 s" in text
    assert "at most 2.0 ms" in text and "package_max_workload" in text
    figures = json.loads(report.with_suffix(".json").read_text())
    assert figures["command"] == "make bench" and len(figures["tuning"]) == 4
    outcome.steps = 1
    write_report(report, outcome, Settings(4), about)
    finished = read_page(report.read_text()).text
    assert "So far" not in finished and "A short run" not in finished


def test_the_time_left_follows_from_what_was_measured() -> None:
    settings = Settings(4, requests=10, seeds=2, fractions=(0.5, 1.0))
    nothing_swept = Outcome([], Objective())
    assert seconds_left(nothing_swept, settings, ["exponential", 0.5, 1.0], [10.0, 20.0]) == 3 * 15.0
    outcome = outcome_of(result("fast", [0.2, 0.2]), result("slow", [0.8, 0.8]))  # 5 and 1.25 requests/s
    at_half, at_all = 20 / 2.5 + 20 / 1.25, 20 / 5 + 20 / 1.25
    left = seconds_left(outcome, settings, ["beams", 0.5, 1.0], [10.0, 20.0])
    assert left == pytest.approx(15.0 + at_half + at_all)
    assert seconds_left(outcome, settings, [], [10.0]) == 0.0


def test_model_facts() -> None:
    facts = dict(model_facts(ROOT / "demo_model" / "checkpoint"))
    assert facts["model"] == "demo_model"
    assert re.fullmatch(r"\d\.\d million parameters, \d+ MB", facts["size"])


def test_verdict_beside_one_that_generates_nothing() -> None:
    silent = result("silent", [0.5])
    for record in silent.records[0]:
        record.error = "status 503: x"
    broken = Result("silent", "exponential", "closed:1")
    broken.add(silent.records[0], Objective())
    assert "no ratio to silent, which generated nothing" in verdict_of(result("a", [0.5]), broken)


def test_verdict_of_one() -> None:
    assert "alone generates 50 tokens/s" in verdict_of(result("alone", [0.2, 0.2]))
