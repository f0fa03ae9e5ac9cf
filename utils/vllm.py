"""`vllm serve` as a service: its configuration, and the documented command line that follows from it.

vLLM runs unmodified, in an environment of its own. Nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from utils.config import ConfigModel, ModelPath, Secret, resolve_path
from utils.options import VllmAppOptions

PositiveInt = Annotated[int, Field(ge=1)]
Plain = str | bool | int | float

_KEYS_OF = {
    "model": "model",
    "served-model-name": "model_id",
    "tensor-parallel-size": "tensor_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size",
    "distributed-executor-backend": "distributed_executor_backend",
    "shutdown-timeout": "shutdown_timeout_seconds",
    "api-key": "api_key",
}
"""Options of `vllm serve` that have a key of their own."""
_OF_THE_COMMAND_LINE = ("host", "port")
_OTHERS = {
    "config": "write its options under 'arguments'",
    "uds": "the gateway calls the server at HOST:PORT",
    "ssl-keyfile": "the gateway calls the server by http",
    "ssl-certfile": "the gateway calls the server by http",
    "headless": "run `vllm serve --headless` by hand on the other hosts",
}


def _check_option(name: str) -> str:
    """The name of an option of `vllm serve` as it stands on the command line."""
    option = name.replace("_", "-")
    if re.fullmatch(r"[a-z][a-z0-9-]*", option) is None:
        raise ValueError(f"{name!r} is not the name of an option, such as max-model-len")
    if option in _KEYS_OF:
        raise ValueError(f"{name!r}: use the key {_KEYS_OF[option]!r} of this file")
    if option in _OF_THE_COMMAND_LINE:
        raise ValueError(f"{name!r} is an option of start_app.py or of the fleet")
    if option in _OTHERS:
        raise ValueError(f"{name!r} cannot be used: {_OTHERS[option]}")
    return option


def _check_environment(value: str, info: ValidationInfo) -> str:
    """The path of an environment in which vLLM is installed."""
    path = resolve_path(value, info)
    if not os.access(os.path.join(path, "bin", "vllm"), os.X_OK):
        raise ValueError(f"{path} has no program bin/vllm: give an environment in which vLLM is installed")
    return path


OptionName = Annotated[str, AfterValidator(_check_option)]
EnvironmentPath = Annotated[str, AfterValidator(_check_environment)]


class VllmConfig(ConfigModel):
    """What `vllm serve` runs, and on what (`vllm_config.json`)."""

    environment_path: EnvironmentPath = Field(
        description="Python environment in which vLLM is installed: the directory that has bin/vllm"
    )
    model: ModelPath = Field(description="directory of the model, or a name on the Hugging Face hub")
    model_id: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="name under which the model is served; default: its directory's or hub name",
    )
    tensor_parallel_size: PositiveInt = Field(1, description="GPUs that share every layer")
    pipeline_parallel_size: PositiveInt = Field(1, description="groups of GPUs that each hold some layers")
    distributed_executor_backend: Literal["mp", "ray"] = Field(
        "mp", description="`mp`: processes on this host; `ray`: workers in a Ray cluster, on any of its hosts"
    )
    ray_address: Annotated[str, Field(pattern=r"^(auto|[^\s/]+:\d{1,5})$")] | None = Field(
        None, description="of the Ray cluster, HOST:PORT; `auto`: the one that was started on this host"
    )
    shutdown_timeout_seconds: Annotated[int, Field(ge=0, le=60)] = Field(
        60, description="how long requests in flight have after SIGTERM"
    )
    api_key: Secret | None = Field(None, description="key that it asks for, the gateway's `server_key`")
    arguments: dict[OptionName, Plain | list[Plain] | dict[str, Any] | None] = Field(
        {}, description="further options of `vllm serve` and their values, e.g. `max-model-len`"
    )
    environment: dict[str, str] = Field(
        {}, description="variables of its process, e.g. `VLLM_HOST_IP` where a host has several addresses"
    )

    @field_validator("arguments", mode="before")
    @classmethod
    def _check_spelling(cls, value: Any) -> Any:
        names = [str(name).replace("_", "-") for name in value] if isinstance(value, dict) else []
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"option given twice: {', '.join(sorted(twice))}")
        return value

    @model_validator(mode="after")
    def _check(self) -> VllmConfig:
        if self.distributed_executor_backend == "ray" and self.ray_address is None:
            raise ValueError("distributed_executor_backend is 'ray': give the 'ray_address' of its cluster")
        if self.distributed_executor_backend != "ray" and self.ray_address is not None:
            raise ValueError("ray_address has no effect unless distributed_executor_backend is 'ray'")
        return self

    @property
    def world_size(self) -> int:
        """Workers, each of which needs a GPU."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def command(self, options: VllmAppOptions) -> list[str]:
        """`vllm serve` and its arguments."""
        own_name = os.path.basename(self.model) if os.path.isabs(self.model) else self.model
        return [
            *(str(Path(self.environment_path) / "bin" / "vllm"), "serve", self.model),
            *("--host", options.host, "--port", str(options.port)),
            *("--served-model-name", options.model_id or self.model_id or own_name),
            *("--tensor-parallel-size", str(self.tensor_parallel_size)),
            *("--pipeline-parallel-size", str(self.pipeline_parallel_size)),
            *("--distributed-executor-backend", self.distributed_executor_backend),
            *("--shutdown-timeout", str(self.shutdown_timeout_seconds)),
            *(word for name, value in self.arguments.items() for word in _words(name, value)),
        ]

    def variables(self, options: VllmAppOptions, inherited: Mapping[str, str]) -> dict[str, str]:
        """The variables of its process. Secrets are here and not on the command line, which all can read."""
        programs = str(Path(self.environment_path) / "bin")
        own = {
            "VIRTUAL_ENV": self.environment_path,
            "PATH": f"{programs}{os.pathsep}{inherited.get('PATH', '')}",
        }
        if self.ray_address is not None:
            own["RAY_ADDRESS"] = self.ray_address
        if self.api_key is not None:
            own["VLLM_API_KEY"] = self.api_key.get_secret_value()
        if options.debug:
            own["VLLM_LOGGING_LEVEL"] = "DEBUG"
        kept = {name: value for name, value in inherited.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
        return kept | own | self.environment


def _words(name: str, value: Any) -> Iterator[str]:
    """An option as `vllm serve` reads it; nothing for null, which means its default."""
    if value is None:
        return
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
        return
    yield f"--{name}"
    if isinstance(value, dict):
        yield json.dumps(value)
    elif isinstance(value, list):
        yield from map(str, value)
    else:
        yield str(value)
