"""The gateway: routes requests to the servers and OpenAI accounts of its configuration."""

from __future__ import annotations

from client.app import create_app as create_gateway
from client.http.asgi import CompletionFront
from client.reload import ConfigFile
from utils.apps import run_in_foreground
from utils.boot import exit_on_config_error
from utils.http_server import allow_open_files
from utils.logs import configure_logging
from utils.options import ClientAppOptions, from_environment, parse_arguments
from utils.signals import end_at_ctrl_c


def build(options: ClientAppOptions) -> CompletionFront:
    """The gateway that `options` ask for."""
    configure_logging(options.debug)
    allow_open_files()
    config_file = ConfigFile(
        options.client_config_file_path, interval=60 * options.client_config_hot_update_interval_minutes
    )
    with exit_on_config_error():
        return create_gateway(config_file.load(), config_file, drain_on_signals=True, host=options.host)


def create_app() -> CompletionFront:
    """Application factory for gunicorn; options come from the environment (`utils.options`)."""
    with exit_on_config_error():
        options = from_environment(ClientAppOptions)
    return build(options)


if __name__ == "__main__":
    end_at_ctrl_c()
    options = parse_arguments(ClientAppOptions, description=__doc__)
    run_in_foreground(build(options), options)
