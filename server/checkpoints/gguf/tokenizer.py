"""The tokenizer in a GGUF file, with its chat template, as one of transformers.

transformers makes the vocabulary, merges and splitting rules into a tokenizer; what it is made of is read
here, because transformers' reader wants torch, which the process that tokenises does without.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from server.checkpoints.errors import ModelError
from server.checkpoints.gguf.header import GGUFHeader
from utils.messages import one_line

logger = logging.getLogger(__name__)

_PREFIX = "tokenizer.ggml."
_PARTS = {
    "model": "tokenizer_type",
    "pre": "pre_tokenizer_type",
    "tokens": "tokens",
    "scores": "scores",
    "token_type": "token_type",
    "merges": "merges",
    "add_space_prefix": "add_prefix_space",
}
"""Field of the file → as transformers calls it."""
_SPECIAL = {
    "bos_token_id": "bos_token",
    "eos_token_id": "eos_token",
    "unknown_token_id": "unk_token",
    "padding_token_id": "pad_token",
}
_BEGINS_BY_DEFAULT = ("llama3", "llama-v3", "llama-bpe")
"""Splitting rules of vocabularies that put BOS before a prompt, where the file does not say."""
_SPLIT_AS_GPT2 = (
    "default",
    *("gpt-2", "gpt2", "phi-2", "olmo", "jina-en", "jina-es", "jina-de", "gigachat", "roberta-bpe"),
    # these split digits one by one besides; their merges have no two digits
    *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
)
"""Splitting rules for which GPT-2's, transformers' default, do."""


def read_tokenizer(path: Path) -> Any:
    """transformers' tokenizer of the GGUF file at `path`.

    Raises:
        ModelError: the file cannot be read, or holds no tokenizer that is supported.
    """
    try:
        from transformers import PreTrainedTokenizerFast
        from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer
    except ImportError as error:
        from transformers import __version__

        raise ModelError(
            f"{path}: GGUF files need transformers 5.23 or later, {__version__} is installed"
        ) from error
    header = GGUFHeader.read(path)
    parts = {
        name: header.fields[_PREFIX + key] for key, name in _PARTS.items() if _PREFIX + key in header.fields
    }
    if "tokens" not in parts:
        raise ModelError(f"{path} holds no tokenizer: set tokenizer_name_or_path to a directory with one")
    _check_splitting(path, parts)
    try:
        backend, options = convert_gguf_tokenizer(header.architecture, parts)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **options, **_options(header, parts))
    except Exception as error:  # transformers raises whatever its parts raise
        raise ModelError(f"the tokenizer in {path} cannot be loaded: {one_line(error)}") from error


def _check_splitting(path: Path, parts: dict[str, Any]) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rules = parts.get("pre_tokenizer_type", "default")
    known = {*GGUF_PRE_TOKENIZER_SPLITS, *_SPLIT_AS_GPT2}
    if parts.get("tokenizer_type") == "gpt2" and rules not in known:
        logger.warning(
            "%s: text is split as for GPT-2, because the rules %r (tokenizer.ggml.pre) are not known: "
            "tokens may differ from those of training",
            path,
            rules,
        )


def _options(header: GGUFHeader, parts: dict[str, Any]) -> dict[str, Any]:
    """What the tokenizer does besides: special tokens, and the chat templates."""
    fields, tokens = header.fields, parts["tokens"]
    options: dict[str, Any] = {}
    for key, name in _SPECIAL.items():
        token = fields.get(_PREFIX + key)
        if token is not None and 0 <= token < len(tokens):
            options[name] = tokens[token]
    begins = parts["tokenizer_type"] == "llama" or parts.get("pre_tokenizer_type") in _BEGINS_BY_DEFAULT
    options["add_bos_token"] = bool(fields.get(f"{_PREFIX}add_bos_token", begins))
    options["add_eos_token"] = bool(fields.get(f"{_PREFIX}add_eos_token", False))
    templates = {
        "default": fields.get("tokenizer.chat_template"),
        **{name: fields.get(f"tokenizer.chat_template.{name}") for name in _template_names(fields)},
    }
    templates = {name: text for name, text in templates.items() if text is not None}
    if templates:
        options["chat_template"] = templates if templates.keys() > {"default"} else templates["default"]
    return options


def _template_names(fields: dict[str, Any]) -> list[str]:
    names = fields.get("tokenizer.chat_templates", [])
    return [str(name) for name in names] if isinstance(names, list) else []
