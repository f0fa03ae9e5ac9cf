"""The configuration of a server for a checkpoint that is named in Python instead of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from server.checkpoints.errors import ModelError
from utils.validation import first_problem

Config = TypeVar("Config", bound=BaseModel)


def config_of(
    model: str | Path | Config, options: dict[str, dict[str, Any]], kind: type[Config], section: str
) -> Config:
    """The configuration that `LLM` and `StaticPipeline` run.

    Args:
        model: a checkpoint, or a whole configuration.
        options: sections with the keys to change; only beside a checkpoint.
        kind: of the configuration.
        section: where it names the checkpoint.

    Raises:
        ModelError: a key or a value is not accepted.
        TypeError: options beside a whole configuration.
    """
    if isinstance(model, kind):
        if options:
            raise TypeError(f"{', '.join(options)}: set these in the {kind.__name__} that is given")
        return model
    loading = {"model_name_or_path": str(model), **options.get(section, {})}
    try:
        return kind.model_validate(options | {section: loading})
    except ValidationError as error:
        raise ModelError(first_problem(error)) from error
