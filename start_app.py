#!/usr/bin/env python3
"""Start, look at and stop the services as background processes.

    .venv/bin/python start_app.py --all                     gateway and both servers
    .venv/bin/python start_app.py --all --model PATH        the same for another model than the configured one
    .venv/bin/python start_app.py --start_cb_server_app --cb_server_port 8011 --client_url http://127.0.0.1:8000
    .venv/bin/python start_app.py --all --start_vllm_app    also vLLM, from an environment of its own
    .venv/bin/python start_app.py --status
    .venv/bin/python start_app.py --stop                    finishes the requests in flight first
    .venv/bin/python start_app.py --stop --cb_server_port 8011      stops that server alone
    .venv/bin/python start_app.py --fleet FILE              several servers, as FILE lists them
    .venv/bin/python start_app.py --fleet FILE --restart --only NAME        that server alone; also --stop

A server reports to the gateway that is started with it, or to the one at --client_url. With --status
and --stop the ports, or --start_client_app and the like, choose services; without them all are meant.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.command_line import check_combination, chosen_names, make_parser, started_kinds
from utils.commands import WRITTEN
from utils.flags import parse
from utils.manage import report_status, stop_services
from utils.running import GATEWAY, VLLM, Directories, ServiceError, find

if TYPE_CHECKING:
    from utils.config import ConfigModel
    from utils.fleet import Fleet, Member
    from utils.services import Service


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    return make_parser(__doc__)


def config_kinds() -> dict[str, type[ConfigModel]]:
    """What the configuration of each kind of service must be."""
    from client.config import GatewayConfig
    from server.continuous_batching.config import ServerConfig as CbServerConfig
    from server.static_batching.config import ServerConfig as SbServerConfig
    from utils.vllm import VllmConfig

    return {
        GATEWAY: GatewayConfig,
        "cb_server_app": CbServerConfig,
        "sb_server_app": SbServerConfig,
        VLLM: VllmConfig,
    }


def check_config(service: Service) -> ConfigModel:
    """The configuration of `service`.

    Raises:
        ConfigError: it would refuse to start with it.
    """
    from utils.config import load_config

    return load_config(service.options.config_path, config_kinds()[service.kind])


def chosen_services(args: argparse.Namespace) -> list[Service]:
    """What to start, with its options, the gateway first.

    Raises:
        ConfigError: a configuration file that a service would refuse.
    """
    from utils.kinds import KINDS, Place
    from utils.options import ClientAppOptions
    from utils.services import Service

    services, client_url = [], args.client_url
    kinds = {kind.service: kind for kind in KINDS.values()}
    for kind in started_kinds(args):
        if kind == GATEWAY:
            client_options = ClientAppOptions(
                host=args.host,
                port=args.client_port,
                debug=args.client_debug,
                client_config_file_path=args.client_config_file_path.absolute(),
                client_config_hot_update_interval_minutes=args.client_config_hot_update_interval_minutes,
            )
            services.append(Service(GATEWAY, "client_app", client_options))
            client_url = client_url or services[0].url
        else:
            given = {name: getattr(args, f"{kind.removesuffix('_app')}_{name}") for name in _OF_A_SERVER}
            service = kinds[kind].at(
                Place(args.host, given["port"], client_url),
                config=given["config_file_path"].absolute(),
                model_id=given["model_id"],
                debug=given["debug"],
            )
            services.append(service)
        if args.model is None or kind in (
            GATEWAY,
            VLLM,
        ):  # a copy of the others is what counts
            check_config(services[-1])
    return services


_OF_A_SERVER = ("port", "config_file_path", "model_id", "debug")


def with_chosen_model(
    services: list[Service], args: argparse.Namespace, directories: Directories
) -> list[Service]:
    """`services` serving the model of ``--model``, which is downloaded where it is not here.

    Raises:
        ModelError: there is no such model.
        ConfigError, ServiceError: a configuration cannot be read, or its copy not be written.
    """
    from server.checkpoints.known import obtain
    from utils.model_choice import with_model

    chosen = obtain(args.model, directories.run / "models")
    dtype = "bfloat16" if shutil.which("nvidia-smi") else None
    changed = with_model(
        services, directories, name=chosen.name, path=chosen.path, dtype=dtype, pickled=chosen.pickled
    )
    for service in changed:
        check_config(service)
    return changed


def start(args: argparse.Namespace, directories: Directories) -> int:
    """Start what `args` choose and wait until it is ready; returns the exit status."""
    # imported here: --status and --stop work with any Python, without what the services need
    from utils.launch import report_joins, start_services, with_these_servers
    from utils.services import check_startable

    services = chosen_services(args)
    check_startable(services, directories)  # before the file of a running gateway is written
    if args.model is not None:
        services = with_chosen_model(services, args, directories)
    if args.all:
        services = with_these_servers(services, directories, always=args.model is not None)
    servers = [service.name for service in services if service.kind not in (GATEWAY, VLLM)]
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


def gpus_needed(member: Member, config: ConfigModel) -> int | None:
    """How many GPUs a server of a fleet uses; None: all that it sees.

    Raises:
        ConfigError: it uses none of those that the fleet gives it.
    """
    from server.continuous_batching.config import ServerConfig as CbServerConfig
    from utils.config import ConfigError
    from utils.vllm import VllmConfig

    if isinstance(config, VllmConfig):
        if config.ray_address is not None:
            raise ConfigError(f"{member.name}: 'gpus' has no effect: Ray chooses the GPUs of its workers")
        return config.world_size
    if isinstance(config, CbServerConfig):
        size = config.parallel_config.tensor_parallel_size
        return None if size == "auto" else size
    return 1


def check_fleet(fleet: Fleet, names: Sequence[str]) -> None:
    """Refuse what could not be started, before anything is touched.

    Raises:
        ConfigError: a configuration that a service would refuse, or GPUs that do not fit it.
    """
    from utils.gpus import gpus

    configs = {name: check_config(fleet.services[name]) for name in names}
    if any(member.gpus for member in fleet.members(names)):
        fleet.check_gpus(names, lambda member: gpus_needed(member, configs[member.name]), gpus())


def run_fleet(args: argparse.Namespace, directories: Directories) -> int:
    """Do what `args` ask of a fleet; returns the exit status."""
    from client.config import GatewayConfig
    from utils.fleet import GATEWAY_NAME, Fleet
    from utils.launch import report_joins, with_these_servers
    from utils.rolling import Launch

    fleet = Fleet.load(args.fleet)
    names = fleet.select(args.only)
    services = [fleet.services[name].name for name in names]
    if args.status:
        labels = {service.name: name for name, service in fleet.services.items()}
        return report_status(directories, sys.stdout, names=services, labels=labels)
    if args.stop:
        return stop_services(directories, names=services)
    check_fleet(fleet, names)
    every, gateway, key = dict(fleet.services), None, None
    if GATEWAY_NAME in every:
        config = check_config(every[GATEWAY_NAME])
        assert isinstance(config, GatewayConfig)
        key = config.api_keys[0].key.get_secret_value() if config.api_keys else None
        gateway = with_these_servers(list(every.values()), directories, always=True)[0]
        every[GATEWAY_NAME] = gateway
    known = {service.name for service in every.values()}
    for running in find(directories):
        if running.alive() and running.name not in known:
            print(f"{running.name} runs too, and is not in {args.fleet}", file=sys.stderr)
    launch = Launch(
        args.gunicorn_config_file_path.absolute(), directories, args.start_timeout_seconds, gateway, key
    )
    chosen = [every[name] for name in names]
    if args.restart:
        return launch.restart(chosen)
    started = launch.start(chosen)
    for service in started:
        print(f"{service.name} is ready at {service.url}")
    return report_joins(started)


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
    try:
        if args.fleet is None and args.status:
            return report_status(directories, sys.stdout, names=chosen_names(flags))
        if args.fleet is None and args.stop:
            return stop_services(directories, names=chosen_names(flags))
        return run(args, directories, parser)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        print(
            f"error: {sys.executable} has no package {error.name!r}: run start_app.py with the Python of an "
            f"environment in which server_requirements.txt is installed, e.g. {WRITTEN} after `make serve`",
            file=sys.stderr,
        )
        return 1


def run(args: argparse.Namespace, directories: Directories, parser: argparse.ArgumentParser) -> int:
    """Do what `args` ask for; a mistake is one line. Returns the exit status."""
    from pydantic import ValidationError

    from server.checkpoints.errors import ModelError
    from utils.config import ConfigError
    from utils.options import explain

    try:
        return start(args, directories) if args.fleet is None else run_fleet(args, directories)
    except ValidationError as error:
        parser.error(explain(error))
    except (ConfigError, ModelError, ServiceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
