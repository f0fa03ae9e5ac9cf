"""Load an endpoint and measure how it answers.

    .venv/bin/python -m benchmarks.loadgen --url http://127.0.0.1:8000 --model demo \\
        --traffic exponential --arrivals closed:16 --arrivals poisson:8 --requests 200 --repeats 3

Times are in seconds; how each figure is computed is written in benchmarks/loadgen/measures.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.loadgen import arrivals as arrivals_module
from benchmarks.loadgen import lengths as lengths_module
from benchmarks.loadgen import traces as traces_module
from benchmarks.loadgen.arrivals import ArrivalError, parse_arrivals
from benchmarks.loadgen.endpoint import PATHS, Endpoint
from benchmarks.loadgen.lengths import LengthError
from benchmarks.loadgen.measures import ObjectiveError, parse_objective
from benchmarks.loadgen.plots import write_plots
from benchmarks.loadgen.repeats import WARM_UP_SEED, Result, measure, table
from benchmarks.loadgen.traces import TraceError, read_trace
from benchmarks.loadgen.traffic import BUILT_IN, Request, parse_traffic
from utils.addresses import redacted
from utils.commands import command, with_interpreter


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("-m", "benchmarks.loadgen"),
        description=with_interpreter(__doc__),
        epilog=f"lengths:\n{lengths_module.__doc__}\narrivals:\n{arrivals_module.__doc__}\n"
        f"traces:\n{traces_module.__doc__}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("endpoint").add_argument
    add("--url", required=True, help="e.g. http://127.0.0.1:8000")
    add("--model", required=True, help="model id")
    add("--api", choices=list(PATHS), default="completions", help="v1 and v2: /completion/v1 and /v2")
    add("--no_stream", action="store_true", help="ask for whole answers")
    add(
        "--no_ignore_eos",
        action="store_true",
        help="do not send ignore_eos, which only this stack and "
        "vLLM know; answers then end when the model ends them",
    )
    add("--api_key", metavar="KEY", help="key, or env:NAME for the value of an environment variable")
    add("--timeout", type=float, default=600.0, metavar="S", help="a request that takes longer has failed")

    add = parser.add_argument_group("what is sent").add_argument
    add("--traffic", default="exponential", choices=list(BUILT_IN))
    add("--answer", metavar="LENGTHS", help="lengths of answers instead of the traffic's (see below)")
    add("--prompt", metavar="LENGTHS", help="lengths of prompts instead of the traffic's")
    add("--prefix", type=int, metavar="N", help="tokens that all prompts begin with")
    add("--beam_share", type=float, metavar="SHARE", help="share of requests that search beams")
    add("--beams", type=int, metavar="N", help="how many beams these have")
    add("--sampled_share", type=float, metavar="SHARE", help="share of requests that sample")
    add("--trace", type=Path, metavar="FILE", help="requests of a trace (see below), by default at its times")
    add("--trace_speed", type=float, default=1.0, metavar="F", help="replay it F times as fast")
    add("--trace_scale", type=float, default=1.0, metavar="F", help="its prompts and answers F times as long")
    add("--seed", type=int, default=0, help="of lengths, prompts and arrivals")

    add = parser.add_argument_group("how").add_argument
    add("--arrivals", action="append", metavar="ARRIVALS", help="see below; several are run in turn")
    count = "requests of a run (default: 100, of a trace all, divided among the runs)"
    add("--requests", type=int, metavar="N", help=count)
    add("--repeats", type=int, default=3, metavar="N", help="runs, each with requests of its own")
    add("--warm_up", type=int, default=8, metavar="N", help="requests before, which are not measured")
    add(
        "--slo",
        default="",
        metavar="NAME=S,…",
        help="objective for goodput: ttft, tpot, latency, and "
        "base with per_token (latency limited by the length of the answer)",
    )

    add = parser.add_argument_group("results").add_argument
    add("--output", type=Path, metavar="FILE", help="write all figures as JSON")
    add("--records", type=Path, metavar="FILE", help="write every request's record as JSONL")
    add("--plots", type=Path, metavar="FILE", help="write plots as one HTML page")
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 where a request failed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        results = uvloop.run(_measure_all(args))
    except (LengthError, ArrivalError, ObjectiveError, TraceError) as error:
        parser.error(str(error))
    print("\n".join(table(results)))
    late = max(lag for result in results for lag in result.client_lags)
    print(f"client lag: at most {1000 * late:.1f} ms (p99 of a run)", file=sys.stderr)
    for result in results:
        for run in result.runs:
            for kind, count in run.errors.items():
                print(f"{count} × {kind}", file=sys.stderr)
    if args.output:
        args.output.write_text(json.dumps([result.to_dict() for result in results], indent=1))
    if args.records:
        _write_records(args.records, results)
    if args.plots:
        write_plots(args.plots, results, args.slo)
    return 1 if any(result.errors for result in results) else 0


async def _measure_all(args: argparse.Namespace) -> list[Result]:
    objective = parse_objective(args.slo)
    requests, warm_up, name = _requests(args)
    texts = args.arrivals or ["trace" if args.trace else "closed:8"]
    return [
        await measure(
            _endpoint(args),
            requests,
            arrivals,
            objective,
            traffic=name,
            warm_up=warm_up,
            timeout=args.timeout,
            progress=not args.quiet,
        )
        for arrivals in map(parse_arrivals, texts)
    ]


def _endpoint(args: argparse.Namespace) -> Endpoint:
    key = args.api_key
    if key and key.startswith("env:"):
        key = os.environ[key.removeprefix("env:")]
    return Endpoint(
        name=redacted(args.url),
        url=args.url.rstrip("/"),
        model=args.model,
        api=args.api,
        stream=not args.no_stream,
        fixed_length=not args.no_ignore_eos,
        api_key=key,
    )


def _requests(args: argparse.Namespace) -> tuple[list[list[Request]], list[Request], str]:
    """(requests of each run, those of the warm-up, name of the traffic)."""
    if args.trace:
        trace = read_trace(args.trace)
        if trace.left_out:
            print(f"{args.trace}: left out {trace.left_out} requests without tokens", file=sys.stderr)
        changed = trace.changed(speed=args.trace_speed, scale=args.trace_scale)
        count = args.requests or len(changed.requests)
        parts = changed.parts(args.repeats, count)
        return parts, parts[0][: args.warm_up], args.trace.name
    if (args.trace_speed, args.trace_scale) != (1.0, 1.0):
        raise TraceError("--trace_speed and --trace_scale change a --trace, and there is none")
    names = ("answer", "prompt", "prefix", "beam_share", "beams", "sampled_share")
    traffic = parse_traffic(args.traffic, **{name: getattr(args, name) for name in names})
    runs = [traffic.requests(args.requests or 100, args.seed + i) for i in range(args.repeats)]
    return runs, traffic.requests(args.warm_up, args.seed + WARM_UP_SEED), traffic.name


def _write_records(path: Path, results: Sequence[Result]) -> None:
    with path.open("w") as file:
        for result in results:
            for number, records in enumerate(result.records):
                for record in records:
                    entry = {"arrivals": result.arrivals, "run": number, **record.to_dict()}
                    file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    sys.exit(main())
