"""What is run: every endpoint under the same traffics, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from benchmarks.comparison.sampler import Samples, sampling
from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint, Record
from benchmarks.loadgen.measures import Objective, summarise
from benchmarks.loadgen.repeats import WARM_UP_SEED, Result
from benchmarks.loadgen.run import run
from benchmarks.loadgen.traffic import BUILT_IN, Request, Traffic

SATURATED = ("equal", "exponential", "sharegpt", "shared-prefix", "beams")
SWEPT = "exponential"
FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Rates of the sweep, as shares of the best throughput at saturation."""

PATIENCE = 4.0
"""How many times longer than wanted a run may take the slowest endpoint."""

TOLERANCE = 10.0
"""How much slower than alone a request may be, in the objective that is chosen by default."""


@dataclass(slots=True, frozen=True)
class Settings:
    """How much is run."""

    beams: int
    """Sequences that each server decodes side by side at most; as many clients saturate it."""
    seconds: float = 3.0
    """How long a run takes the fastest endpoint, about."""
    repeats: int = 3
    traffics: Sequence[str] = SATURATED
    fractions: Sequence[float] = FRACTIONS
    timeout: float = 600.0


@dataclass(slots=True)
class Outcome:
    """All that was measured."""

    endpoints: list[Endpoint]
    objective: Objective
    saturated: dict[str, list[Result]] = field(default_factory=dict)
    """By traffic, a result for each endpoint, in their order."""
    samples: dict[str, list[Samples]] = field(default_factory=dict)
    """The same for the samples of the last run."""
    sweep: dict[float, list[Result]] = field(default_factory=dict)
    """By rate, a result for each endpoint."""


async def alone(endpoint: Endpoint, timeout: float) -> float:
    """Seconds per token of a request that has the server for itself: the median of a few."""
    requests = Traffic("alone", answer="fixed:48", prompt="fixed:32").requests(5, 0)
    records = await run(endpoint, requests, parse_arrivals("closed:1"), timeout=timeout)
    _check(endpoint, records)
    return sorted((r.end - r.due) / r.new_tokens for r in records)[len(records) // 2]


async def compare(
    endpoints: list[Endpoint],
    settings: Settings,
    objective: Objective | None,
    on_progress: Callable[[Outcome], None],
) -> Outcome:
    """Run everything.

    Args:
        endpoints: what is compared.
        settings: how much is run.
        objective: None: derived from how fast a request is alone.
        on_progress: called with all that was measured so far, after each traffic.
    """
    if objective is None:
        fastest = min([await alone(endpoint, settings.timeout) for endpoint in endpoints])
        objective = Objective(base=1.0, per_token=round(TOLERANCE * fastest, 4))
    outcome = Outcome(endpoints, objective)
    steps = len(settings.traffics) + (len(settings.fractions) if SWEPT in settings.traffics else 0)
    with tqdm(total=steps, unit="traffic", desc="comparing") as bar:
        for name in settings.traffics:
            bar.set_postfix_str(name)
            await _saturate(outcome, settings, BUILT_IN[name])
            on_progress(outcome)
            bar.update()
        if SWEPT in settings.traffics:
            best = max(result.median("requests_per_second") for result in outcome.saturated[SWEPT])
            for fraction in settings.fractions:
                bar.set_postfix_str(f"{SWEPT} at {fraction:.0%}")
                await _at_rate(outcome, settings, round(best * fraction, 3))
                on_progress(outcome)
                bar.update()
    return outcome


async def _saturate(outcome: Outcome, settings: Settings, traffic: Traffic) -> None:
    """The traffic with as many clients as the servers have room for; equal lengths all at once."""
    arrivals = "all" if traffic.name == "equal" else f"closed:{settings.beams}"
    rates = []
    for endpoint in outcome.endpoints:  # warms up, and tells how many requests make a run
        requests = traffic.requests(settings.beams, WARM_UP_SEED)
        records = await run(endpoint, requests, parse_arrivals(arrivals), timeout=settings.timeout)
        _check(endpoint, records)
        rates.append(summarise(records, outcome.objective).requests_per_second)
    # as long as wanted for the fastest, but bearable for the slowest, and never less than two batches
    wanted = min(max(rates) * settings.seconds, min(rates) * settings.seconds * PATIENCE)
    count = max(2 * settings.beams, round(wanted))
    if arrivals == "all":
        count -= count % settings.beams  # whole packages: static batching at its best
    parts = [traffic.requests(count, seed) for seed in range(settings.repeats)]
    results, samples = await _run_in_turn(outcome, settings, traffic.name, arrivals, parts)
    outcome.saturated[traffic.name] = results
    outcome.samples[traffic.name] = samples


async def _run_in_turn(
    outcome: Outcome, settings: Settings, traffic: str, arrivals: str, parts: list[list[Request]]
) -> tuple[list[Result], list[Samples]]:
    """Each part against one endpoint after the other, so that a machine that slows down or speeds
    up meanwhile does so for all; the samples are those of the last part."""
    results = [Result(endpoint.name, traffic, arrivals, [], []) for endpoint in outcome.endpoints]
    samples: list[Samples] = []
    for seed, part in enumerate(parts):
        samples = []
        for endpoint, result in zip(outcome.endpoints, results, strict=True):
            async with sampling(endpoint.url) as seen:
                records = await run(
                    endpoint, part, parse_arrivals(arrivals), seed=seed, timeout=settings.timeout
                )
            samples.append(seen)
            result.records.append(records)
            result.runs.append(summarise(records, outcome.objective))
    return results, samples


async def _at_rate(outcome: Outcome, settings: Settings, rate: float) -> None:
    """The swept traffic as an open loop at `rate` requests a second, once: neighbouring rates tell
    how much of it is chance."""
    count = max(24, round(1.5 * settings.seconds * rate))
    parts = [BUILT_IN[SWEPT].requests(count, seed=100)]
    results, _ = await _run_in_turn(outcome, settings, SWEPT, f"poisson:{rate:g}", parts)
    outcome.sweep[rate] = results


class EndpointError(Exception):
    """An endpoint that does not answer requests as they are put to it."""


def _check(endpoint: Endpoint, records: Sequence[Record]) -> None:
    failed = [record for record in records if record.error is not None]
    if len(failed) == len(records):
        raise EndpointError(f"{endpoint.name} answers no request: {failed[0].error}")
