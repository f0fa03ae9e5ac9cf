"""transformers' configuration of a checkpoint, wherever it is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json
from server.checkpoints.gguf.config import config_fields
from server.checkpoints.gguf.header import SUFFIX, GGUFHeader
from server.checkpoints.lengths import positions
from server.checkpoints.mimo_config import register_mimo
from utils.messages import one_line

_MOST_LAYERS = 10_000
"""A configuration with more is damaged; lists of that length would fill the memory before that shows."""
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def read_hf_config(path: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of the checkpoint in directory `path`, or in the GGUF file `path`.

    Raises:
        ModelError: there is none, or it is not readable or not supported.
    """
    from transformers import AutoConfig

    if path.suffix == SUFFIX and not path.is_dir():
        fields = config_fields(GGUFHeader.read(path))
        _check_layers(path, fields)
        try:
            return AutoConfig.for_model(**fields)
        except Exception as error:  # transformers raises whatever its parts raise
            raise ModelError(f"the metadata of {path} make no configuration: {one_line(error)}") from error
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is not a model directory: it holds no config.json")
    file = path / "config.json"
    fields = read_json(file)  # its errors say more than transformers' do
    _check_layers(file, fields)
    register_mimo()
    try:
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
        length = positions(config)
    except Exception as error:
        raise ModelError(f"{file} cannot be read: {one_line(error)}") from error
    if length is not None and length < 1:
        raise ModelError(f"{file}: max_position_embeddings is {length}, expected a number of tokens")
    return config


def _check_layers(file: Path, fields: dict[str, Any]) -> None:
    """Raise ModelError where `fields`, or those of a model within, count more layers than any model has."""
    for part in (fields, *(each for each in fields.values() if isinstance(each, dict))):
        for key in _LAYER_COUNTS:
            count = part.get(key)
            if isinstance(count, int | float) and count > _MOST_LAYERS:
                raise ModelError(f"{file}: {key} is {count}, expected at most {_MOST_LAYERS:,}")
