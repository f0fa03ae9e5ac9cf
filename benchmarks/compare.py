"""Compare batching strategies, and any further endpoints, under the same traffics.

    .venv/bin/python -m benchmarks.compare                                the demo model, all traffics
    .venv/bin/python -m benchmarks.compare --quick                        two minutes
    .venv/bin/python -m benchmarks.compare --model PATH --dtype bfloat16 --beams 32
    .venv/bin/python -m benchmarks.compare --policies first_come prefill_first decode_first
    .venv/bin/python -m benchmarks.compare --traffic --trace AzureLLMInferenceTrace_conv.csv --trace_scale 0.1
    .venv/bin/python -m benchmarks.compare --endpoint vllm=http://127.0.0.1:9000,model=NAME

Tunes the static-batching server, starts it and a continuous-batching server for each scheduling policy on
free ports, loads one after the other, and after each traffic writes one HTML page, and the figures as JSON.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import cast, get_args

import uvloop
from tqdm import tqdm

from benchmarks.comparison import about as about_module
from benchmarks.comparison import tuning
from benchmarks.comparison.outcome import FRACTIONS, REQUESTS, SATURATED, SEEDS, SWEPT, Outcome, Settings
from benchmarks.comparison.plan import EndpointError, compare, default_objective
from benchmarks.comparison.report import About, duration, write_report
from benchmarks.comparison.servers import (
    MODEL_ID,
    ROOT,
    Server,
    continuous_config,
    started,
    static_config,
)
from benchmarks.loadgen.endpoint import Api, Endpoint
from benchmarks.loadgen.measures import ObjectiveError, parse_objective
from benchmarks.loadgen.repeats import table
from benchmarks.loadgen.traces import TraceError, read_trace
from benchmarks.loadgen.traffic import BUILT_IN
from benchmarks.processes import StartError
from server.scheduling.policies import POLICIES
from utils.commands import command, with_interpreter

STRATEGIES = ("continuous", "static")
QUICK_TRAFFICS = ("equal", SWEPT)
QUICK_FRACTIONS = (0.5, 1.0)
QUICK_REQUESTS = 16
"""Of each of the `SEEDS` runs."""


class UsageError(ValueError):
    """Options that do not go together."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("-m", "benchmarks.compare"),
        description=with_interpreter(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what is compared").add_argument
    add("--model", default=str(ROOT / "demo_model" / "checkpoint"), help="model that both servers load")
    add("--dtype", default="float32", help="torch_dtype of both (default: %(default)s)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--beams", type=int, default=16, help="sequences that each decodes side by side, and clients")
    add("--strategies", nargs="*", choices=STRATEGIES, default=list(STRATEGIES))
    policies = "scheduling policies of the continuous-batching server (default: first_come)"
    add("--policies", nargs="+", choices=list(POLICIES), default=["first_come"], help=policies)
    endpoint = "a further endpoint: NAME=URL[,model=ID][,api=completions|chat|v1|v2][,stream=0|1]"
    add("--endpoint", action="append", default=[], type=parse_endpoint, metavar="NAME=URL,…", help=endpoint)

    add = parser.add_argument_group("under what").add_argument
    add("--traffic", nargs="*", choices=list(BUILT_IN), help=f"default: {' '.join(SATURATED)}")
    trace = "a recorded traffic (see benchmarks.loadgen), replayed at its times; may be given several times"
    add("--trace", action="append", default=[], type=Path, metavar="FILE", help=trace)
    add("--trace_speed", type=float, default=1.0, metavar="F", help="replay traces F times as fast")
    add("--trace_scale", type=float, default=1.0, metavar="F", help="prompts and answers F times as long")
    sweep = f"rates of the sweep of {SWEPT!r}, as shares of its best throughput; none: no sweep"
    add("--sweep", nargs="*", type=float, metavar="SHARE", help=sweep)
    slo = "objective, as for the load generator; default: 1 s and, per token, ten times what one alone takes"
    add("--slo", default=None, metavar="NAME=S,…", help=slo)

    add = parser.add_argument_group("how much").add_argument
    quick = f"two minutes on the demo model: {' '.join(QUICK_TRAFFICS)}, fewer rates and requests"
    add("--quick", action="store_true", help=quick)
    add("--requests", type=int, help=f"requests of a run (default: {REQUESTS}; quick: {QUICK_REQUESTS})")
    add("--seeds", type=int, default=SEEDS, help="runs of every traffic and rate (default: %(default)s)")
    report = "report (default: benchmarks/results/local/compare-TIME.html)"
    add("--output", type=Path, default=None, help=report)
    return parser


def parse_endpoint(text: str) -> Endpoint:
    """``NAME=URL,model=ID,api=completions,stream=1`` as an endpoint."""
    first, *rest = text.split(",")
    name, _, url = first.partition("=")
    options = dict(part.partition("=")[::2] for part in rest)
    unknown = set(options) - {"model", "api", "stream"}
    api = options.get("api", "completions")
    if not url.startswith("http") or unknown or api not in get_args(Api):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL[,model=ID][,api=…][,stream=0|1]")
    stream = options.get("stream", "1") == "1"
    return Endpoint(name, url.rstrip("/"), options.get("model", MODEL_ID), cast(Api, api), stream)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, 1 where something could not be measured, 130 where it was interrupted; what was
    measured until then is in the report."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output = args.output or _default_output()
    try:
        settings = settings_of(args)
        facts = _facts(args)
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
            trials = _tune(args, settings, directory)
            servers = list(_servers(args, trials))
            endpoints = [*_start(servers, directory, stack), *args.endpoint]
            if not endpoints:
                parser.error("nothing to measure: no strategy and no endpoint")
            about = About(
                _again(sys.argv[1:] if argv is None else argv),
                facts,
                {server.name: server.config for server in servers},
            )
            outcome = _compare(args, endpoints, trials, settings, output, about)
    except (ObjectiveError, TraceError, UsageError) as error:
        parser.error(str(error))
    except (StartError, EndpointError) as error:
        print(error, file=sys.stderr)
        return _cut_short(output, 1)
    except KeyboardInterrupt:
        return _cut_short(output, 130)
    print("\n".join(table(outcome.results)))
    print(f"\nreport: {output}")
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """How much the command line asks for.

    Raises:
        TraceError: a trace cannot be replayed.
        UsageError: an option would have no effect.
    """
    traffics = args.traffic if args.traffic is not None else QUICK_TRAFFICS if args.quick else SATURATED
    fractions = args.sweep if args.sweep is not None else QUICK_FRACTIONS if args.quick else FRACTIONS
    if args.sweep and SWEPT not in traffics:
        raise UsageError(f"--sweep raises the rate of {SWEPT!r}, which --traffic leaves out")
    if not args.trace and (args.trace_speed, args.trace_scale) != (1.0, 1.0):
        raise UsageError("--trace_speed and --trace_scale change a --trace, and there is none")
    requests = args.requests or (QUICK_REQUESTS if args.quick else REQUESTS)
    traces = {}
    for path in args.trace:
        trace = read_trace(path).changed(speed=args.trace_speed, scale=args.trace_scale)
        trace.parts(args.seeds, requests)  # raises where it is too short, before anything is started
        if trace.left_out:
            print(f"{path}: left out {trace.left_out} requests without tokens", file=sys.stderr)
        traces[path.name] = trace
    return Settings(args.beams, requests, args.seeds, tuple(traffics), traces, tuple(sorted(fractions)))


def _facts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """What the report says of model, code and machine."""
    return [
        *about_module.model_facts(Path(args.model)),
        ("dtype", args.dtype),
        ("batch", f"up to {args.beams} sequences side by side in every server, as many clients"),
        ("commit", about_module.commit()),
        ("versions", about_module.versions()),
        ("machine", about_module.machine()),
        ("load before", about_module.load_before()),
        ("begun", datetime.now().strftime("%Y-%m-%d %H:%M")),
    ]


def _again(argv: Sequence[str]) -> str:
    """The command that repeats the run, with the variable by which servers choose their threads."""
    threads = os.environ.get("OMP_NUM_THREADS")
    again = command("-m", "benchmarks.compare", *argv)
    return again if threads is None else f"export OMP_NUM_THREADS={shlex.quote(threads)}; {again}"


def _compare(
    args: argparse.Namespace,
    endpoints: list[Endpoint],
    trials: list[tuning.Trial],
    settings: Settings,
    output: Path,
    about: About,
) -> Outcome:
    async def measured() -> Outcome:
        if args.slo is None:
            objective = await default_objective(endpoints, settings.timeout)
        else:
            objective = parse_objective(args.slo)
        outcome = Outcome(endpoints, objective, trials=trials)
        await compare(outcome, settings, written)
        return outcome

    def written(outcome: Outcome) -> None:
        write_report(output, outcome, settings, about)
        left = outcome.seconds_left
        rest = f"; about {duration(left)} left" if left else ""
        tqdm.write(f"{outcome.done} of {outcome.steps} written to {output}{rest}", file=sys.stderr)

    return uvloop.run(measured())


def _cut_short(output: Path, status: int) -> int:
    """Say where the report of what was measured is; returns the exit `status`."""
    found = f"report of what was measured: {output}" if output.exists() else "nothing was measured yet"
    print(f"\n{found}", file=sys.stderr)
    return status


def _start(servers: Sequence[Server], directory: Path, stack: ExitStack) -> Iterator[Endpoint]:
    for server in servers:
        url = stack.enter_context(started(server, directory))
        yield Endpoint(server.name, url, MODEL_ID, server.api, server.streams)


def _tune(args: argparse.Namespace, settings: Settings, directory: Path) -> list[tuning.Trial]:
    """Trials of the static-batching server; none where it is not compared."""
    if "static" not in args.strategies:
        return []
    servers = [
        (size, interval, _static(args, size, interval))
        for size, interval in tuning.grid(args.beams, quick=args.quick)
    ]
    return tuning.tune(
        servers,
        directory,
        BUILT_IN[SWEPT],
        clients=args.beams,
        requests=max(args.beams, settings.requests // 4),
        seeds=2 if args.quick else 3,
        timeout=settings.timeout,
    )


def _servers(args: argparse.Namespace, trials: Sequence[tuning.Trial]) -> Iterator[Server]:
    model = str(Path(args.model).resolve())
    if "continuous" in args.strategies:
        for policy in args.policies:
            suffix = f" ({policy})" if len(args.policies) > 1 else ""
            config = continuous_config(model, args.dtype, args.beams, args.device, policy)
            name = f"continuous batching{suffix}"
            yield Server(name, "continuous_batching_server_app.py", config, "v2", True)
    if trials:
        chosen = tuning.best(trials)
        yield _static(args, chosen.size, chosen.interval)


def _static(args: argparse.Namespace, size: int, interval: float) -> Server:
    config = static_config(str(Path(args.model).resolve()), args.dtype, args.device, size, interval)
    return Server("static batching", "static_batching_server_app.py", config, "v1", False)


def _default_output() -> Path:
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return ROOT / "benchmarks" / "results" / "local" / f"compare-{now}.html"


if __name__ == "__main__":
    sys.exit(main())
