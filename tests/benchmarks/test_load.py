"""What is sent and when: lengths, traffics, traces, arrivals."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.loadgen.arrivals import ArrivalError, parse_arrivals
from benchmarks.loadgen.lengths import TABLES, LengthError, parse_lengths
from benchmarks.loadgen.traffic import BUILT_IN, Request, parse_traffic

MANY = 50_000


def draw(text: str) -> np.ndarray:
    return parse_lengths(text)(np.random.default_rng(0), MANY)


def test_lengths_have_the_shape_they_name() -> None:
    assert set(draw("fixed:7")) == {7}
    uniform = draw("uniform:3:9")
    assert set(uniform) == set(range(3, 10))
    assert np.allclose(np.bincount(uniform)[3:] / MANY, 1 / 7, atol=0.01)
    unbounded, capped = draw("exponential:64"), draw("exponential:64:256")
    assert unbounded.mean() == pytest.approx(64.5, rel=0.02)  # rounded up
    assert unbounded.std() == pytest.approx(64, rel=0.02)
    assert capped.max() == 256 and unbounded.max() > 400
    assert (capped == 256).mean() == pytest.approx(np.exp(-255 / 64), rel=0.1)
    assert min(unbounded.min(), capped.min()) == 1


@pytest.mark.parametrize(
    ("table", "mean"),
    [("sharegpt-prompt", 161), ("sharegpt-answer", 338), ("alpaca-prompt", 19), ("alpaca-answer", 58)],
)
def test_tables_have_the_published_means(table: str, mean: float) -> None:
    assert draw(table).mean() == pytest.approx(mean, rel=0.03)
    assert TABLES[table] == sorted(TABLES[table])
    assert draw(f"{table}:0.5:100").max() == min(100, round(TABLES[table][-1] / 2))


@pytest.mark.parametrize(
    "text", ["", "fixed", "fixed:0", "fixed:1:2", "uniform:9:3", "gauss:3", "fixed:x", "exponential:1:2:3"]
)
def test_what_is_no_distribution(text: str) -> None:
    with pytest.raises(LengthError):
        parse_lengths(text)


@pytest.mark.parametrize("name", BUILT_IN)
def test_traffic_is_reproducible(name: str) -> None:
    traffic = BUILT_IN[name]
    assert traffic.requests(50, 3) == traffic.requests(50, 3) != traffic.requests(50, 4)
    assert (
        traffic.requests(50, 3)[:1] != BUILT_IN["equal" if name != "equal" else "beams"].requests(50, 3)[:1]
    )


def test_mixes() -> None:
    prefixed = BUILT_IN["shared-prefix"].requests(20, 0)
    assert len({tuple(request.prompt[:512]) for request in prefixed}) == 1
    assert len({tuple(request.prompt) for request in prefixed}) == 20
    mixed = BUILT_IN["mixed"].requests(2000, 0)
    beams = [request for request in mixed if request.options.get("num_beams") == 4]
    sampled = [request for request in mixed if request.options.get("do_sample")]
    assert len(beams) / 2000 == pytest.approx(0.1, abs=0.02)
    assert len(sampled) / 2000 == pytest.approx(0.45, abs=0.03)
    assert len({request.options["seed"] for request in sampled}) > 0.99 * len(sampled)


def test_changed_traffic() -> None:
    traffic = parse_traffic("equal", answer="fixed:3", prefix=None, beam_share=1.0, beams=2)
    request = traffic.requests(1, 0)[0]
    assert request.new_tokens == 3 and request.options == {"num_beams": 2} and len(request.prompt) == 64
    with pytest.raises(LengthError, match="exponential"):
        parse_traffic("eqal")
    with pytest.raises(LengthError):
        parse_traffic("equal", prompt="fixd:3")


def due(text: str, count: int = 20_000) -> np.ndarray:
    return np.array(parse_arrivals(text).due([Request("", 1)] * count, 0))


def test_open_loops() -> None:
    assert not due("all").any()
    for text in ("poisson:50", "bursty:50:4"):
        times = due(text)
        assert times[0] == 0 and (np.diff(times) >= 0).all()
        assert len(times) / times[-1] == pytest.approx(50, rel=0.1)
    gaps = np.diff(due("poisson:50"))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)
    gaps = np.diff(due("bursty:50:4"))
    assert gaps.std() / gaps.mean() == pytest.approx(4, abs=0.4)


def test_ramp_rises_evenly() -> None:
    times = due("ramp:10:90")
    total = times[-1]
    assert total == pytest.approx(20_000 / 50, rel=0.05)
    counts, _ = np.histogram(times, 10, (0, total))
    rates = counts / (total / 10)
    assert np.allclose(rates, np.arange(14, 94, 8), rtol=0.1)


def test_closed_loop() -> None:
    assert parse_arrivals("closed:8").clients == 8
    for text in ("closed", "closed:0", "closed:1.5", "poisson:-1", "poisson:x", "ramp:9:1", "often"):
        with pytest.raises(ArrivalError):
            parse_arrivals(text)
