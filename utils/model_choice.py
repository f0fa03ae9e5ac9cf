"""Configurations of servers for a model that the command line names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.config import read_file
from utils.launch import write_copy
from utils.options import ServerAppOptions
from utils.running import Directories
from utils.services import Service

_SECTIONS = {"cb_server_app": "model_loading_config", "sb_server_app": "worker_config"}
"""Kind of a server → the section of its configuration that names the model."""
_FORGOTTEN = (
    *("model_type", "tokenizer_name_or_path", "model_max_length", "revision"),
    *("quantize_method", "is_gptq_quantized", "gptq_model_base_name", "gptq_config_base_name"),
)
"""Keys of the section that speak of the model which the file names."""


def with_model(
    services: Sequence[Service],
    directories: Directories,
    *,
    name: str,
    path: Path,
    dtype: str | None,
    pickled: bool,
) -> list[Service]:
    """`services` with copies of their configurations in which the servers serve another model.

    Args:
        name: under which it is served, unless the command line says another.
        path: of the model on this machine.
        dtype: to compute it in; None: as the files say.
        pickled: it has pickled weights alone.

    Raises:
        ConfigError: a configuration cannot be read.
        ServiceError: a copy cannot be written.
    """
    changed = []
    for service in services:
        options = service.options
        if isinstance(options, ServerAppOptions):
            copy = directories.run / f"{service.name}.json"
            section = _SECTIONS[service.kind]
            config = _changed(read_file(options.server_config_file_path), section, path, dtype)
            if service.kind == "sb_server_app":
                config[section]["use_safetensors"] = not pickled
            write_copy(config, copy)
            new = {"server_config_file_path": copy.absolute(), "model_id": options.model_id or name}
            service = replace(service, options=options.model_copy(update=new))
        changed.append(service)
    return changed


def _changed(config: Mapping[str, Any], section: str, path: Path, dtype: str | None) -> dict[str, Any]:
    own = {key: value for key, value in (config.get(section) or {}).items() if key not in _FORGOTTEN}
    own |= {"model_name_or_path": str(path), "quantization": "auto"}
    if dtype is not None:
        own["torch_dtype"] = dtype
    return {**config, section: own}
