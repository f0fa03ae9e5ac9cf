#!/usr/bin/env python3
"""Start, look at and stop the services as background processes under gunicorn.

    python start_app.py --all                        gateway and both servers
    python start_app.py --start_cb_server_app --cb_server_port 8011 --client_url http://127.0.0.1:8000
    python start_app.py --status
    python start_app.py --stop                       finishes the requests in flight first

A server reports to the gateway that is started with it, or to the one at --client_url.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from client.config import GatewayConfig
from server.continuous_batching.config import ServerConfig as CbServerConfig
from server.static_batching.config import ServerConfig as SbServerConfig
from utils.config import ConfigError, load_config
from utils.launch import config_listing, report_status, start_services, stop_services
from utils.options import CONFIGS, CbServerAppOptions, ClientAppOptions, SbServerAppOptions, explain
from utils.services import GATEWAY, Directories, Service, ServiceError, check_startable

SERVERS = (
    ("cb", "continuous_batching_server_app", CbServerAppOptions, CbServerConfig),
    ("sb", "static_batching_server_app", SbServerAppOptions, SbServerConfig),
)
"""Prefix of the options, module, options and configuration of each kind of server."""


def port(text: str) -> int:
    """A port number on the command line."""
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (1 to 65535)")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("what to do").add_argument
    add("--all", action="store_true", help="start the gateway and both servers, set up for each other")
    add("--status", action="store_true", help="show what runs; exit status 0: all ready, 1: not, 3: nothing")
    add("--stop", action="store_true", help="drain and stop all that was started")

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
        model_id = "name under which the model is served; default: the name of its directory"
        add(f"--{short}_server_model_id", metavar="NAME", help=model_id)
        default = CONFIGS / f"{short}_server_config.json"
        add(f"--{short}_server_config_file_path", metavar="PATH", default=default, type=Path)
        add(f"--{short}_server_debug", action="store_true", help="log at level DEBUG")
        add(f"--{short}_server_port", metavar="PORT", default=number, type=port, help="default: %(default)s")

    add = parser.add_argument_group("common").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--client_url", metavar="URL", help="gateway that the servers report to")
    gunicorn_config = CONFIGS / "gunicorn_config.py"
    add("--gunicorn_config_file_path", metavar="PATH", default=gunicorn_config, type=Path)
    patience = "give up where a service is not ready by then (default: %(default)s)"
    add("--start_timeout_seconds", metavar="SECONDS", default=1800.0, type=float, help=patience)
    add("--run_dir", metavar="PATH", default=Directories.run, type=Path, help="pid files (default: run/)")
    add("--log_dir", metavar="PATH", default=Directories.logs, type=Path, help="logs (default: logs/)")
    return parser


def chosen_servers(args: argparse.Namespace, client_url: str | None) -> Iterator[Service]:
    """The servers to start, reporting to the gateway at `client_url`.

    Raises:
        ConfigError: a configuration file that a server would refuse.
    """
    given = vars(args)
    for short, module, options_kind, config_kind in SERVERS:
        if not (args.all or given[f"start_{short}_server_app"]):
            continue
        path = given[f"{short}_server_config_file_path"].absolute()
        load_config(path, config_kind)
        options = options_kind(
            host=args.host,
            port=given[f"{short}_server_port"],
            debug=given[f"{short}_server_debug"],
            model_id=given[f"{short}_server_model_id"],
            server_config_file_path=path,
            client_url=client_url,
        )
        yield Service(f"{short}_server_app", module, options)


def chosen_services(args: argparse.Namespace) -> list[Service]:
    """What to start, with its options, the gateway first.

    Raises:
        ConfigError: a configuration file that a service would refuse.
    """
    if not (args.all or args.start_client_app):
        return list(chosen_servers(args, args.client_url))
    path = args.client_config_file_path.absolute()
    load_config(path, GatewayConfig)
    options = ClientAppOptions(
        host=args.host,
        port=args.client_port,
        debug=args.client_debug,
        client_config_file_path=path,
        client_config_hot_update_interval_minutes=args.client_config_hot_update_interval_minutes,
    )
    gateway = Service(GATEWAY, "client_app", options)
    return [gateway, *chosen_servers(args, args.client_url or gateway.url)]


def with_these_servers(services: Sequence[Service], directories: Directories) -> list[Service]:
    """`services` with a configuration of the gateway, the first, that lists the others and no more.

    Raises:
        ServiceError: it cannot be written.
    """
    gateway, *servers = services
    options = gateway.options
    assert isinstance(options, ClientAppOptions)
    copy = directories.run / f"{gateway.name}.json"
    path = config_listing(servers, options.client_config_file_path, copy)
    options = options.model_copy(update={"client_config_file_path": path})
    return [Service(GATEWAY, gateway.module, options), *servers]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    directories = Directories(args.run_dir, args.log_dir)
    if args.status:
        return report_status(directories)
    if args.stop:
        return stop_services(directories)
    try:
        try:
            services = chosen_services(args)
        except ValidationError as error:
            parser.error(explain(error))
        if not services:
            parser.error("nothing to do: give --all, --start_client_app, --start_cb_server_app, …")
        check_startable(services, directories)  # before the file of a running gateway is written
        if args.all:
            services = with_these_servers(services, directories)
        start_services(
            services,
            gunicorn_config=args.gunicorn_config_file_path.absolute(),
            directories=directories,
            timeout_seconds=args.start_timeout_seconds,
        )
    except (ConfigError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for service in services:
        print(f"{service.name} is ready at {service.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
