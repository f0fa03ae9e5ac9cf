"""The command line of `start_app.py`: its options, and which of them go together.

Imports the standard library alone: what runs can be stopped without the environment it runs in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.commands import ROOT, with_interpreter
from utils.flags import Flags, Once, port, positive
from utils.running import GATEWAY, PORT_OPTIONS, VLLM, Directories

CONFIGS = ROOT / "configs"
START_FLAGS = {"all", *(f"start_{kind}" for kind in PORT_OPTIONS)}
SELECTING = {*START_FLAGS, *PORT_OPTIONS.values(), "run_dir"}
"""What --status and --stop take; everything else is for starting."""
_FLEET = {"fleet", "only", "run_dir"}
"""What --status, --stop and --restart take beside --fleet."""
_FLEET_STARTING = {*_FLEET, "log_dir", "gunicorn_config_file_path", "start_timeout_seconds"}
_DOING = ("status", "stop", "restart")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        prog="start_app.py",
        description=with_interpreter(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.register("action", None, Once)
    _add_actions(parser)
    add = parser.add_argument_group("gateway").add_argument
    add("--start_client_app", action="store_true", help="start the gateway")
    add("--client_config_file_path", metavar="PATH", default=CONFIGS / "client_config.json", type=Path)
    reread = "also reread the configuration this often; 0: only when the file changes (default)"
    add(
        "--client_config_hot_update_interval_minutes", metavar="MINUTES", default=0.0, type=float, help=reread
    )
    add("--client_debug", action="store_true", help="log at level DEBUG")
    add("--client_port", metavar="PORT", default=8000, type=port, help="default: %(default)s")

    for prefix, start, name, number in (
        ("cb_server", "cb_server_app", "continuous-batching server", 8001),
        ("sb_server", "sb_server_app", "static-batching server", 8002),
        ("vllm", VLLM, "vLLM server", 8003),
    ):
        add = parser.add_argument_group(name).add_argument
        add(f"--start_{start}", action="store_true", help=f"start the {name}")
        model_id = "name under which the model is served; default: as configured, or its directory's name"
        add(f"--{prefix}_model_id", metavar="NAME", help=model_id)
        default = CONFIGS / f"{prefix}_config.json"
        add(f"--{prefix}_config_file_path", metavar="PATH", default=default, type=Path)
        add(f"--{prefix}_debug", action="store_true", help="log at level DEBUG")
        add(f"--{prefix}_port", metavar="PORT", default=number, type=port, help="default: %(default)s")

    add = parser.add_argument_group("common").add_argument
    known = "a directory, a .gguf file, a name on the Hugging Face hub, modelscope:NAME, or smollm2"
    add("--model", metavar="MODEL", help=f"serve this instead of the configured model: {known}")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--client_url", metavar="URL", help="gateway that the servers report to")
    gunicorn_config = CONFIGS / "gunicorn_config.py"
    add("--gunicorn_config_file_path", metavar="PATH", default=gunicorn_config, type=Path)
    patience = "give up where a service is not ready by then (default: %(default)s)"
    add("--start_timeout_seconds", metavar="SECONDS", default=1800.0, type=positive, help=patience)
    add("--run_dir", metavar="PATH", default=Directories.run, type=Path, help="pid files (default: run/)")
    add("--log_dir", metavar="PATH", default=Directories.logs, type=Path, help="logs (default: logs/)")
    return parser


def _add_actions(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to do").add_argument
    add("--all", action="store_true", help="start the gateway and both servers, set up for each other")
    add("--status", action="store_true", help="show what runs; exit status 0: all ready, 1: not, 3: nothing")
    add("--stop", action="store_true", help="drain and stop what was started, all or what is chosen")
    add("--fleet", metavar="FILE", type=Path, help="start what FILE lists and does not run yet")
    restart = "with --fleet and --only: drain, stop and start again, one after the other"
    add("--restart", action="store_true", help=restart)
    add("--only", metavar="NAMES", help="with --fleet: only these of its names, separated by commas")


def check_combination(flags: Flags) -> None:
    """Refuse options that would have no effect together.

    Raises:
        ValueError: one line that names them.
    """
    given, args = flags.given, flags.args
    does = next((name for name in _DOING if getattr(args, name)), None)
    if args.fleet is not None:
        allowed = _FLEET if does in ("status", "stop") else _FLEET_STARTING
        flags.refuse(given - allowed - {does}, f"has no effect with --fleet{f' --{does}' if does else ''}")
        if does == "restart" and args.only is None:
            raise ValueError("--restart needs --only: names of the fleet, separated by commas")
        return
    if does != "restart" and does is not None:
        flags.refuse(given - SELECTING - {does}, f"has no effect with --{does}")
        if args.all:
            flags.refuse(given & SELECTING - {"all", "run_dir"}, f"has no effect with --{does} --all")
        return
    flags.refuse(given & {"only", "restart"}, "has no effect without --fleet")
    if not given & START_FLAGS:
        raise ValueError("nothing to do: give --all, --start_client_app, --start_cb_server_app, …")
    _check_starting(flags)


def _check_starting(flags: Flags) -> None:
    given, args = flags.given, flags.args
    every = {kind for kind in PORT_OPTIONS if kind != VLLM}
    if args.all:
        why = "has no effect with --all, which starts the gateway and both servers"
        flags.refuse({f"start_{kind}" for kind in every} & given, why)
    started = {kind for kind in PORT_OPTIONS if (args.all and kind in every) or f"start_{kind}" in given}
    for kind in PORT_OPTIONS.keys() - started:
        own = {name for name in given if name.startswith(kind.removesuffix("app")) and name != "client_url"}
        or_all = " or --all" if kind in every else ""
        flags.refuse(own, f"has no effect without --start_{kind}{or_all}")
    if not started & {"cb_server_app", "sb_server_app"}:
        flags.refuse(given & {"client_url", "model"}, "has no effect without a server of ours to start")


def chosen_names(flags: Flags) -> list[str]:
    """The services that --status or --stop is about; empty: all that were started."""
    return [
        f"{kind}-{getattr(flags.args, option)}"
        for kind, option in PORT_OPTIONS.items()
        if flags.given & {f"start_{kind}", option}
    ]


def started_kinds(args: argparse.Namespace) -> list[str]:
    """The kinds of services to start, the gateway first."""
    every = [GATEWAY, "cb_server_app", "sb_server_app"]
    return [kind for kind in PORT_OPTIONS if (args.all and kind in every) or getattr(args, f"start_{kind}")]
