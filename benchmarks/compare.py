"""Compare batching strategies, and any further endpoints, under the same traffics.

    .venv/bin/python -m benchmarks.compare                                the demo model, in a few minutes
    .venv/bin/python -m benchmarks.compare --model PATH --dtype bfloat16 --beams 32 --seconds 20
    .venv/bin/python -m benchmarks.compare --policies first_come prefill_first decode_first
    .venv/bin/python -m benchmarks.compare --endpoint vllm=http://127.0.0.1:9000,model=NAME

Starts a continuous-batching server for each scheduling policy and a static-batching server on free
ports, loads one after the other and writes one HTML page with plots and the same figures as JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, cast, get_args

import uvloop

from benchmarks.comparison.plan import FRACTIONS, SATURATED, SWEPT, EndpointError, Outcome, Settings, compare
from benchmarks.comparison.report import machine, write_report
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
from benchmarks.loadgen.traffic import BUILT_IN
from benchmarks.processes import StartError
from server.scheduling.policies import POLICIES
from utils.commands import command, with_interpreter

STRATEGIES = ("continuous", "static")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=command("-m", "benchmarks.compare"),
        description=with_interpreter(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=str(ROOT / "demo_model" / "checkpoint"), help="model that both servers load")
    add("--dtype", default="float32", help="torch_dtype of both (default: %(default)s)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"])
    add("--beams", type=int, default=16, help="sequences that each decodes side by side, and clients")
    add("--strategies", nargs="*", choices=STRATEGIES, default=list(STRATEGIES))
    policies = "scheduling policies of the continuous-batching server (default: first_come)"
    add("--policies", nargs="+", choices=list(POLICIES), default=["first_come"], help=policies)
    endpoint = "a further endpoint: NAME=URL[,model=ID][,api=completions|chat|v1|v2][,stream=0|1]"
    add("--endpoint", action="append", default=[], type=parse_endpoint, metavar="NAME=URL,…", help=endpoint)
    add("--traffic", nargs="*", choices=list(BUILT_IN), default=list(SATURATED))
    sweep = f"rates of the sweep of {SWEPT!r}, as shares of its best throughput; none: no sweep"
    add("--sweep", nargs="*", type=float, default=list(FRACTIONS), metavar="SHARE", help=sweep)
    add("--seconds", type=float, default=3.0, help="length of a run on the fastest endpoint (default: 3)")
    add("--repeats", type=int, default=3, help="runs of every traffic (default: 3)")
    slo = "objective, as for the load generator; default: 1 s and, per token, ten times what one alone takes"
    add("--slo", default=None, metavar="NAME=S,…", help=slo)
    add(
        "--output",
        type=Path,
        default=None,
        help="report (default: benchmarks/results/local/compare-TIME.html)",
    )
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
    settings = Settings(args.beams, args.seconds, args.repeats, tuple(args.traffic), tuple(args.sweep))
    about = _about(args, sys.argv[1:] if argv is None else argv)
    try:
        objective = None if args.slo is None else parse_objective(args.slo)
        with ExitStack() as stack:
            endpoints = [*_start(args, stack), *args.endpoint]
            if not endpoints:
                parser.error("nothing to measure: no strategy and no endpoint")
            outcome = uvloop.run(
                compare(endpoints, settings, objective, lambda found: write_report(output, found, about))
            )
    except ObjectiveError as error:
        parser.error(str(error))
    except (StartError, EndpointError) as error:
        print(error, file=sys.stderr)
        return _cut_short(output, 1)
    except KeyboardInterrupt:
        return _cut_short(output, 130)
    print("\n".join(table(_all_results(outcome))))
    print(f"\nreport: {output}")
    return 0


def _about(args: argparse.Namespace, argv: Sequence[str]) -> list[tuple[str, str]]:
    return [
        ("command", command("-m", "benchmarks.compare", *argv)),
        ("model", Path(args.model).name),
        ("dtype", args.dtype),
        ("beams", str(args.beams)),
        *machine(),
    ]


def _cut_short(output: Path, status: int) -> int:
    """Say where the report of what was measured is; returns the exit `status`."""
    found = f"report of what was measured: {output}" if output.exists() else "nothing was measured yet"
    print(f"\n{found}", file=sys.stderr)
    return status


def _start(args: argparse.Namespace, stack: ExitStack) -> list[Endpoint]:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compare-")))
    endpoints = []
    for server in _servers(args):
        url = stack.enter_context(started(server, directory))
        endpoints.append(Endpoint(server.name, url, MODEL_ID, server.api, server.streams))
    return endpoints


def _servers(args: argparse.Namespace) -> Iterator[Server]:
    shared = str(Path(args.model).resolve()), args.dtype, args.beams, args.device
    if "continuous" in args.strategies:
        for policy in args.policies:
            suffix = f" ({policy})" if len(args.policies) > 1 else ""
            config = continuous_config(*shared, policy)
            yield Server(
                f"continuous batching{suffix}", "continuous_batching_server_app.py", config, "v2", True
            )
    if "static" in args.strategies:
        yield Server("static batching", "static_batching_server_app.py", static_config(*shared), "v1", False)


def _default_output() -> Path:
    now = datetime.now().strftime("%Y%m%d-%H%M%S")
    return ROOT / "benchmarks" / "results" / "local" / f"compare-{now}.html"


def _all_results(outcome: Outcome) -> list[Any]:
    groups = [*outcome.saturated.values(), *outcome.sweep.values()]
    return [result for group in groups for result in group]


if __name__ == "__main__":
    sys.exit(main())
