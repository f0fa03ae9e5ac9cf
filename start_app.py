#!/usr/bin/env python3
"""Start, look at and stop the services as background processes under gunicorn.

    .venv/bin/python start_app.py --all                     gateway and both servers
    .venv/bin/python start_app.py --all --model PATH        the same for another model than the configured one
    .venv/bin/python start_app.py --start_cb_server_app --cb_server_port 8011 --client_url http://127.0.0.1:8000
    .venv/bin/python start_app.py --status
    .venv/bin/python start_app.py --stop                    finishes the requests in flight first
    .venv/bin/python start_app.py --stop --cb_server_port 8011      stops that server alone

A server reports to the gateway that is started with it, or to the one at --client_url. With --status
and --stop the ports, or --start_client_app and the like, choose services; without them all are meant.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.commands import ROOT, WRITTEN, with_interpreter
from utils.flags import Flags, Once, parse, port, positive
from utils.manage import report_status, stop_services
from utils.running import GATEWAY, PORT_OPTIONS, Directories, ServiceError

if TYPE_CHECKING:
    from utils.services import Service

CONFIGS = ROOT / "configs"
START_FLAGS = {"all", *(f"start_{kind}" for kind in PORT_OPTIONS)}
SELECTING = {*START_FLAGS, *PORT_OPTIONS.values(), "run_dir"}
"""What --status and --stop take; everything else is for starting."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        prog="start_app.py",
        description=with_interpreter(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.register("action", None, Once)
    add = parser.add_argument_group("what to do").add_argument
    add("--all", action="store_true", help="start the gateway and both servers, set up for each other")
    add("--status", action="store_true", help="show what runs; exit status 0: all ready, 1: not, 3: nothing")
    add("--stop", action="store_true", help="drain and stop what was started, all or what is chosen")

    add = parser.add_argument_group("gateway").add_argument
    add("--start_client_app", action="store_true", help="start the gateway")
    add("--client_config_file_path", metavar="PATH", default=CONFIGS / "client_config.json", type=Path)
    reread = "also reread the configuration this often; 0: only when the file changes (default)"
    add(
        "--client_config_hot_update_interval_minutes", metavar="MINUTES", default=0.0, type=float, help=reread
    )
    add("--client_debug", action="store_true", help="log at level DEBUG")
    add("--client_port", metavar="PORT", default=8000, type=port, help="default: %(default)s")

    for short, name, number in (("cb", "continuous-batching", 8001), ("sb", "static-batching", 8002)):
        add = parser.add_argument_group(f"{name} server").add_argument
        add(f"--start_{short}_server_app", action="store_true", help=f"start the {name} server")
        model_id = "name under which the model is served; default: as configured, or its directory's name"
        add(f"--{short}_server_model_id", metavar="NAME", help=model_id)
        default = CONFIGS / f"{short}_server_config.json"
        add(f"--{short}_server_config_file_path", metavar="PATH", default=default, type=Path)
        add(f"--{short}_server_debug", action="store_true", help="log at level DEBUG")
        add(f"--{short}_server_port", metavar="PORT", default=number, type=port, help="default: %(default)s")

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


def check_combination(flags: Flags) -> None:
    """Refuse options that would have no effect together.

    Raises:
        ValueError: one line that names them.
    """
    given, args = flags.given, flags.args
    if args.status or args.stop:
        does = "--status" if args.status else "--stop"
        flags.refuse(given - SELECTING - {does.removeprefix("--")}, f"has no effect with {does}")
        if args.all:
            flags.refuse(given & SELECTING - {"all", "run_dir"}, f"has no effect with {does} --all")
        return
    if not given & START_FLAGS:
        raise ValueError("nothing to do: give --all, --start_client_app, --start_cb_server_app, …")
    if args.all:
        flags.refuse(given & START_FLAGS - {"all"}, "has no effect with --all, which starts every service")
    started = {kind for kind in PORT_OPTIONS if args.all or f"start_{kind}" in given}
    for kind in PORT_OPTIONS.keys() - started:
        own = {name for name in given if name.startswith(kind.removesuffix("app")) and name != "client_url"}
        flags.refuse(own, f"has no effect without --start_{kind} or --all")
    if started == {GATEWAY}:
        flags.refuse(given & {"client_url", "model"}, "has no effect without a server to start")


def chosen_names(flags: Flags) -> list[str]:
    """The services that --status or --stop is about; empty: all that were started."""
    return [
        f"{kind}-{getattr(flags.args, option)}"
        for kind, option in PORT_OPTIONS.items()
        if flags.given & {f"start_{kind}", option}
    ]


def chosen_services(args: argparse.Namespace) -> list[Service]:
    """What to start, with its options, the gateway first.

    Raises:
        ConfigError: a configuration file that a service would refuse.
    """
    from client.config import GatewayConfig
    from server.continuous_batching.config import ServerConfig as CbServerConfig
    from server.static_batching.config import ServerConfig as SbServerConfig
    from utils.config import load_config
    from utils.options import CbServerAppOptions, ClientAppOptions, SbServerAppOptions
    from utils.services import Service

    services, client_url = [], args.client_url
    if args.all or args.start_client_app:
        path = args.client_config_file_path.absolute()
        load_config(path, GatewayConfig)
        client_options = ClientAppOptions(
            host=args.host,
            port=args.client_port,
            debug=args.client_debug,
            client_config_file_path=path,
            client_config_hot_update_interval_minutes=args.client_config_hot_update_interval_minutes,
        )
        services.append(Service(GATEWAY, "client_app", client_options))
        client_url = client_url or services[0].url
    given = vars(args)
    for short, module, options_kind, config_kind in (
        ("cb", "continuous_batching_server_app", CbServerAppOptions, CbServerConfig),
        ("sb", "static_batching_server_app", SbServerAppOptions, SbServerConfig),
    ):
        if not (args.all or given[f"start_{short}_server_app"]):
            continue
        path = given[f"{short}_server_config_file_path"].absolute()
        if args.model is None:  # otherwise a copy with that model is what counts
            load_config(path, config_kind)
        options = options_kind(
            host=args.host,
            port=given[f"{short}_server_port"],
            debug=given[f"{short}_server_debug"],
            model_id=given[f"{short}_server_model_id"],
            server_config_file_path=path,
            client_url=client_url,
        )
        services.append(Service(f"{short}_server_app", module, options))
    return services


def with_chosen_model(
    services: list[Service], args: argparse.Namespace, directories: Directories
) -> list[Service]:
    """`services` serving the model of ``--model``, which is downloaded where it is not here.

    Raises:
        ModelError: there is no such model.
        ConfigError, ServiceError: a configuration cannot be read, or its copy not be written.
    """
    from server.checkpoints.known import obtain
    from server.continuous_batching.config import ServerConfig as CbServerConfig
    from server.static_batching.config import ServerConfig as SbServerConfig
    from utils.config import load_config
    from utils.model_choice import with_model
    from utils.options import ServerAppOptions

    chosen = obtain(args.model, directories.run / "models")
    dtype = "bfloat16" if shutil.which("nvidia-smi") else None
    changed = with_model(
        services, directories, name=chosen.name, path=chosen.path, dtype=dtype, pickled=chosen.pickled
    )
    for service in changed:
        if isinstance(service.options, ServerAppOptions):
            kind = CbServerConfig if service.kind == "cb_server_app" else SbServerConfig
            load_config(service.options.server_config_file_path, kind)
    return changed


def start(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Start what `args` choose and wait until it is ready; returns the exit status."""
    # imported here: --status and --stop work with any Python, without what the services need
    from pydantic import ValidationError

    from server.checkpoints.errors import ModelError
    from utils.config import ConfigError
    from utils.launch import report_joins, start_services, with_these_servers
    from utils.options import explain
    from utils.services import check_startable

    directories = Directories(args.run_dir, args.log_dir)
    try:
        services = chosen_services(args)
        check_startable(services, directories)  # before the file of a running gateway is written
        if args.model is not None:
            services = with_chosen_model(services, args, directories)
        if args.all:
            services = with_these_servers(services, directories, always=args.model is not None)
        servers = [service.name for service in services if service.kind != GATEWAY]
        running = start_services(
            services,
            gunicorn_config=args.gunicorn_config_file_path.absolute(),
            directories=directories,
            timeout_seconds=args.start_timeout_seconds,
            optional=servers if args.model is not None else (),
        )
        if args.all and len(running) < len(services):
            names = {service.name for service in running}
            with_these_servers([each for each in services if each.name in names], directories, always=True)
        for service in running:
            print(f"{service.name} is ready at {service.url}")
        return report_joins(running)
    except ValidationError as error:
        parser.error(explain(error))
    except (ConfigError, ModelError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    flags = parse(parser, argv)
    args = flags.args
    try:
        check_combination(flags)
    except ValueError as error:
        parser.error(str(error))
    directories = Directories(args.run_dir, args.log_dir)
    if args.status:
        return report_status(directories, names=chosen_names(flags))
    if args.stop:
        return stop_services(directories, names=chosen_names(flags))
    try:
        return start(args, parser)
    except ModuleNotFoundError as error:
        print(
            f"error: {sys.executable} has no package {error.name!r}: run start_app.py with the Python of an "
            f"environment in which server_requirements.txt is installed, e.g. {WRITTEN} after `make serve`",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
