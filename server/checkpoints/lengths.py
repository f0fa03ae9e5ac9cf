"""Which tokens end an answer of a checkpoint, and how long its sequences may be: alike on both servers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def eos_token_ids(path: Path, hf: Any) -> tuple[int, ...]:
    """The tokens that end an answer: those of ``generation_config.json``, else those of the configuration.

    Args:
        path: the checkpoint.
        hf: transformers' configuration of it.

    Raises:
        ModelError: the file is not readable, or holds something else than token ids.
    """
    file, ids = path / _FILE, None
    if path.is_dir() and file.is_file():
        ids = read_json(file).get("eos_token_id")
    if ids is None:
        file, ids = path / "config.json", hf.get_text_config().eos_token_id
    found = ids if isinstance(ids, list) else [] if ids is None else [ids]
    for token in found:
        if type(token) is not int or token < 0:
            raise ModelError(f"{file}: eos_token_id is {ids!r}, expected a token id or a list of them")
    return tuple(found)


def positions(hf: Any) -> int | None:
    """Tokens of the longest sequence, as the configuration `hf` has it without a scaled rotary embedding."""
    text = hf.get_text_config()
    known = (getattr(text, name, None) for name in _LENGTHS)
    return next((length for length in known if isinstance(length, int)), None)


def trained_length(hf: Any) -> int | None:
    """Tokens of the longest sequence that a checkpoint was made for; None: its configuration does not say.

    Args:
        hf: transformers' configuration.
    """
    text, known = hf.get_text_config(), positions(hf)
    if known is None:
        return None
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    scaled = [
        int(kind["factor"] * kind["original_max_position_embeddings"])
        for kind in kinds
        if kind.get("rope_type") in ("yarn", "longrope", "llama3")
        and kind.get("factor")
        and kind.get("original_max_position_embeddings")
    ]
    return max([known, *scaled])


def warn_beyond(path: Path, hf: Any, model_max_length: int | None) -> None:
    """Log a warning where sequences may become longer than the checkpoint was made for."""
    trained = trained_length(hf)
    if model_max_length is not None and trained is not None and model_max_length > trained:
        logger.warning(
            "model_max_length is %d, but %s was made for %d tokens: what follows them may be nonsense",
            model_max_length,
            path,
            trained,
        )
