"""Runs every endpoint under the same traffics, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from benchmarks.comparison.outcome import SWEPT, Outcome, Settings
from benchmarks.comparison.sampler import Samples, sampling
from benchmarks.loadgen.arrivals import parse_arrivals
from benchmarks.loadgen.endpoint import Endpoint, Record
from benchmarks.loadgen.lag import client_lag, timer_lag
from benchmarks.loadgen.measures import Objective
from benchmarks.loadgen.repeats import WARM_UP_SEED, Result
from benchmarks.loadgen.run import run
from benchmarks.loadgen.traffic import BUILT_IN, Request, Traffic

TOLERANCE = 10.0
"""How much slower than alone a request may be, in the objective that is chosen by default."""


async def alone(endpoint: Endpoint, timeout: float) -> float:
    """Seconds per token of a request that has the server for itself: the median of a few."""
    requests = Traffic("alone", answer="fixed:48", prompt="fixed:32").requests(5, 0)
    records = await run(endpoint, requests, parse_arrivals("closed:1"), timeout=timeout)
    check(endpoint, records)
    return statistics.median((record.end - record.due) / record.new_tokens for record in records)


async def default_objective(endpoints: Sequence[Endpoint], timeout: float) -> Objective:
    """A second, and for each token `TOLERANCE` times what it takes the fastest endpoint alone."""
    fastest = min([await alone(endpoint, timeout) for endpoint in endpoints])
    return Objective(base=1.0, per_token=round(TOLERANCE * fastest, 4))


async def compare(outcome: Outcome, settings: Settings, on_progress: Callable[[Outcome], None]) -> None:
    """Run everything and write it into `outcome`.

    Args:
        outcome: endpoints and objective; gets the results.
        settings: how much is run.
        on_progress: called after each traffic.
    """
    steps = settings.steps()
    outcome.steps, taken = len(steps), []
    with tqdm(total=len(steps), unit="traffic", desc="comparing") as bar:
        for number, step in enumerate(steps):
            bar.set_postfix_str(step if isinstance(step, str) else f"{SWEPT} at {step:.0%}")
            begin = time.monotonic()
            if isinstance(step, float):
                await _at_rate(outcome, settings, step)
            elif step in settings.traces:
                await _replay(outcome, settings, step)
            else:
                await _saturate(outcome, settings, BUILT_IN[step])
            taken.append(time.monotonic() - begin)
            outcome.seconds_left = seconds_left(outcome, settings, steps[number + 1 :], taken)
            on_progress(outcome)
            bar.update()


def seconds_left(
    outcome: Outcome, settings: Settings, ahead: Sequence[str | float], taken: Sequence[float]
) -> float:
    """About how long the steps `ahead` take: as long as those so far; rates follow from the throughput."""
    swept = outcome.saturated.get(SWEPT, ())
    rates = [step for step in ahead if isinstance(step, float)] if swept else []
    expected = (len(ahead) - len(rates)) * statistics.fmean(taken)
    for fraction in rates:
        for result in swept:
            served = min(_best_rate(outcome) * fraction, result.mean("requests_per_second"))
            expected += settings.seeds * settings.requests / served if served else 0.0
    return expected


def _best_rate(outcome: Outcome) -> float:
    results = outcome.saturated.get(SWEPT, ())
    return max((result.mean("requests_per_second") for result in results), default=0.0)


async def _saturate(outcome: Outcome, settings: Settings, traffic: Traffic) -> None:
    """The traffic with as many clients as the servers have room for; equal lengths all at once."""
    arrivals = "all" if traffic.name == "equal" else f"closed:{settings.beams}"
    await warm_up(outcome.endpoints, settings, traffic.requests(settings.beams, WARM_UP_SEED))
    count = settings.requests
    if arrivals == "all":
        count += -count % settings.beams  # whole packages: static batching at its best
    parts = [traffic.requests(count, seed) for seed in range(settings.seeds)]
    results, samples = await _run_in_turn(outcome, settings, traffic.name, arrivals, parts)
    outcome.saturated[traffic.name] = results
    outcome.samples[traffic.name] = samples


async def _replay(outcome: Outcome, settings: Settings, name: str) -> None:
    """Stretches of a trace, at its times."""
    parts = settings.traces[name].parts(settings.seeds, settings.requests)
    await warm_up(outcome.endpoints, settings, parts[0][: settings.beams])
    results, samples = await _run_in_turn(outcome, settings, name, "trace", parts)
    outcome.replayed[name] = results
    outcome.samples[name] = samples


async def warm_up(endpoints: Sequence[Endpoint], settings: Settings, requests: Sequence[Request]) -> None:
    """Requests that are not measured.

    Raises:
        EndpointError: an endpoint answers none of them.
    """
    for endpoint in endpoints:
        check(endpoint, await run(endpoint, requests, parse_arrivals("all"), timeout=settings.timeout))


async def _run_in_turn(
    outcome: Outcome, settings: Settings, traffic: str, arrivals: str, parts: list[list[Request]]
) -> tuple[list[Result], list[Samples]]:
    """Each part against one endpoint after the other, so that a machine that slows down or speeds
    up meanwhile does so for all; the samples are those of the last part."""
    results = [Result(endpoint.name, traffic, arrivals) for endpoint in outcome.endpoints]
    samples: list[Samples] = []
    for seed, part in enumerate(parts):
        samples = []
        for endpoint, result in zip(outcome.endpoints, results, strict=True):
            async with sampling(endpoint.url) as seen, timer_lag() as late:
                records = await run(
                    endpoint, part, parse_arrivals(arrivals), seed=seed, timeout=settings.timeout
                )
            samples.append(seen)
            result.add(records, outcome.objective, client_lag(records, late))
    return results, samples


async def _at_rate(outcome: Outcome, settings: Settings, fraction: float) -> None:
    """The swept traffic as an open loop, at a share of the best throughput."""
    rate = float(f"{_best_rate(outcome) * fraction:.3g}")
    parts = [BUILT_IN[SWEPT].requests(settings.requests, 100 + seed) for seed in range(settings.seeds)]
    results, _ = await _run_in_turn(outcome, settings, SWEPT, f"poisson:{rate:g}", parts)
    outcome.sweep[rate] = results


class EndpointError(Exception):
    """An endpoint that does not answer requests as they are put to it."""


def check(endpoint: Endpoint, records: Sequence[Record]) -> None:
    """Raise an `EndpointError` where all of them failed."""
    failed = [record for record in records if record.error is not None]
    if len(failed) == len(records):
        raise EndpointError(f"{endpoint.name} answers no request: {failed[0].error}")
