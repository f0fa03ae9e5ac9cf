"""transformers' tokenizer of a checkpoint, wherever it is written down."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json
from server.checkpoints.gguf import tokenizer as gguf_tokenizer
from server.checkpoints.gguf.header import SUFFIX
from server.checkpoints.hf_config import read_hf_config
from utils.messages import one_line

logger = logging.getLogger(__name__)

_JSON = (
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
"""Files that transformers reads, whose errors do not name them."""


def read_tokenizer(path: Path, *, use_fast: bool = True, trust_remote_code: bool = False) -> Any:
    """The tokenizer in directory `path`, or in the GGUF file `path`.

    Args:
        use_fast: what the configuration says; transformers 5 has one kind of tokenizers.
        trust_remote_code: run tokenizer code that ships with the model.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    if not use_fast:
        logger.warning("use_fast_tokenizer is false, which has no effect since transformers 5: leave it out")
    if path.suffix == SUFFIX and not path.is_dir():
        return gguf_tokenizer.read_tokenizer(path)
    from transformers import AutoTokenizer  # slow to import: only where a tokenizer is made

    for file in (path / name for name in _JSON):
        if file.is_file():
            read_json(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises whatever its parts raise
        if (path / "config.json").is_file():
            read_hf_config(path, trust_remote_code=trust_remote_code)  # raises if that file is at fault
        missing = "" if (path / "tokenizer.json").is_file() else " without a tokenizer.json"
        problem = f"the tokenizer in {path} cannot be loaded{missing}"
        raise ModelError(f"{problem}: {one_line(error)}") from error
    if not hasattr(tokenizer, "convert_ids_to_tokens"):  # transformers makes what tokenizer_class names
        made = type(tokenizer).__name__
        raise ModelError(f"{path / 'tokenizer_config.json'}: tokenizer_class {made!r} is no tokenizer")
    return tokenizer
