"""Options of the apps: as command-line flags, and as environment variables under gunicorn.

Gunicorn calls an app factory without arguments, so `start_app.py` hands options to its workers in
the environment, as ``INFERENCE_STACK_<OPTION>``. An app is written as::

    def build(options: ClientAppOptions) -> FastAPI:
        configure_logging(options.debug)
        with exit_on_config_error():                  # one line and exit status 3
            config = load_config(options.client_config_file_path, ClientConfig)
        ...

    def create_app() -> FastAPI:                      # gunicorn "client_app:create_app()"
        with exit_on_config_error():
            options = from_environment(ClientAppOptions)
        return build(options)

    if __name__ == "__main__":
        options = parse_arguments(ClientAppOptions, description=__doc__)
        run_in_foreground(build(options), options)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from utils.addresses import check_open_url, reachable_from
from utils.commands import ROOT, with_interpreter
from utils.config import ConfigError

PREFIX = "INFERENCE_STACK_"
CONFIGS = ROOT / "configs"

Port = Annotated[int, Field(ge=0, le=65535)]
ServiceUrl = Annotated[str, AfterValidator(check_open_url)]


class AppOptions(BaseModel):
    """What every app takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: Port = Field(description="port to listen on")
    debug: bool = Field(False, description="log at level DEBUG")

    @property
    def config_path(self) -> Path:
        """The file with the configuration of the app."""
        raise NotImplementedError


class ClientAppOptions(AppOptions):
    """Options of the gateway, `client_app.py`."""

    port: Port = Field(8000, description="port to listen on")
    client_config_file_path: Path = Field(
        CONFIGS / "client_config.json", description="configuration of the gateway"
    )
    client_config_hot_update_interval_minutes: float = Field(
        0, ge=0, description="also reread the configuration this often; 0: only when the file changes"
    )

    @property
    def config_path(self) -> Path:
        return self.client_config_file_path


class ServerAppOptions(AppOptions):
    """Options that both servers share."""

    server_config_file_path: Path = Field(description="configuration of the server")
    model_id: str | None = Field(
        None,
        min_length=1,
        description="name under which the model is served; default: as configured, or its directory's name",
    )
    client_url: ServiceUrl | None = Field(
        None, description="gateway to tell of start-up and shutdown, e.g. http://127.0.0.1:8000"
    )
    server_url: ServiceUrl | None = Field(
        None, description="URL at which the gateway reaches this server; default: http://HOST:PORT"
    )

    @property
    def config_path(self) -> Path:
        return self.server_config_file_path

    @property
    def url(self) -> str:
        """The URL that this server announces to the gateway at `client_url`."""
        if self.server_url is not None:
            return self.server_url
        return f"http://{reachable_from(self.client_url or '', self.host)}:{self.port}"


class CbServerAppOptions(ServerAppOptions):
    """Options of `continuous_batching_server_app.py`."""

    port: Port = Field(8001, description="port to listen on")
    server_config_file_path: Path = Field(
        CONFIGS / "cb_server_config.json", description="configuration of the server"
    )


class SbServerAppOptions(ServerAppOptions):
    """Options of `static_batching_server_app.py`."""

    port: Port = Field(8002, description="port to listen on")
    server_config_file_path: Path = Field(
        CONFIGS / "sb_server_config.json", description="configuration of the server"
    )


class VllmAppOptions(AppOptions):
    """Options of `vllm_app.py`."""

    port: Port = Field(8003, description="port to listen on")
    vllm_config_file_path: Path = Field(
        CONFIGS / "vllm_config.json", description="configuration of the vLLM server"
    )
    model_id: str | None = Field(
        None, min_length=1, description="name under which the model is served; default: as configured"
    )
    name: str | None = Field(None, description="shown in lists of processes; start_app.py finds it by that")

    @property
    def config_path(self) -> Path:
        return self.vllm_config_file_path


Options = TypeVar("Options", bound=AppOptions)


def parse_arguments(
    kind: type[Options], *, description: str | None, argv: Sequence[str] | None = None
) -> Options:
    """The options on the command line (`argv`, or that of the process).

    Exits with status 2 and one line on stderr where an option is not accepted.
    """
    parser = argparse.ArgumentParser(
        description=with_interpreter(description), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, info in kind.model_fields.items():
        _add_argument(parser, name, info)
    try:
        return kind.model_validate(vars(parser.parse_args(argv)))
    except ValidationError as error:
        parser.error("--" + explain(error))


def _add_argument(parser: argparse.ArgumentParser, name: str, info: FieldInfo) -> None:
    flag, text = f"--{name}", (info.description or "").replace("%", "%%")
    if info.annotation is bool:
        parser.add_argument(flag, action="store_true", help=text)
        return
    required = info.is_required()
    shown = "" if required or info.default is None or "default:" in text else f" (default: {info.default})"
    # left out unless given, so that the default is the model's
    parser.add_argument(flag, default=argparse.SUPPRESS, required=required, help=text + shown, metavar="…")


def to_environment(options: AppOptions) -> dict[str, str]:
    """`options` as environment variables for `from_environment`; defaults are left out."""
    values = options.model_dump(exclude_none=True, exclude_defaults=True)
    return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def to_arguments(options: AppOptions) -> list[str]:
    """`options` as a command line for `parse_arguments`; defaults are left out."""
    values = options.model_dump(exclude_none=True, exclude_defaults=True)
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]


def from_environment(kind: type[Options], environment: Mapping[str, str] | None = None) -> Options:
    """The options in ``INFERENCE_STACK_*`` variables of `environment` (or of the process).

    Raises:
        ConfigError: a value is not accepted.
    """
    environment = os.environ if environment is None else environment
    names = {name: PREFIX + name.upper() for name in kind.model_fields}
    try:
        return kind.model_validate({k: environment[v] for k, v in names.items() if v in environment})
    except ValidationError as error:
        raise ConfigError(PREFIX + explain(error, str.upper)) from None


def explain(error: ValidationError, spell: Callable[[str], str] = str) -> str:
    """One line for the first option that was not accepted: its name as `spell` writes it, and why."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{spell(str(first['loc'][0]))}: {first['msg'].removeprefix('Value error, ')}"
