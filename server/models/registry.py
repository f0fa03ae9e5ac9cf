"""Which model families there are: the one list that a new family is added to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.checkpoints.errors import ModelError
from server.checkpoints.files import read_json

if TYPE_CHECKING:
    from server.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family is read.

    Attributes:
        module: has a function ``read(hf)`` from transformers' configuration to an `Architecture`, which
            raises ModelError for a variant that is not supported.
        models: what it reads, for people.
    """

    module: str
    models: str


FAMILIES: dict[str, Family] = {
    "cohere": Family("server.models.cohere", "Command R and R+"),
    "cohere2": Family("server.models.cohere", "Command R7B and A"),
    "gemma": Family("server.models.gemma", "Gemma 1"),
    "gemma2": Family("server.models.gemma", "Gemma 2"),
    "gemma3_text": Family("server.models.gemma3", "Gemma 3, text"),
    "glm": Family("server.models.glm", "GLM-4 and GLM-Edge"),
    "glm4": Family("server.models.glm", "GLM-4 and GLM-Z1 of 2025"),
    "gpt2": Family("server.models.gpt2", "GPT-2"),
    "gpt_neox": Family("server.models.gpt_neox", "GPT-NeoX and Pythia"),
    "gpt_oss": Family("server.models.gpt_oss", "gpt-oss in floats"),
    "granite": Family("server.models.granite", "Granite 3 without experts"),
    "llama": Family("server.models.llama", "Llama 1 to 3 and what is built alike (SmolLM2, Yi, …)"),
    "mimo": Family("server.models.mimo", "MiMo 7B"),
    "mistral": Family("server.models.mistral", "Mistral 7B to Large, with their sliding windows"),
    "mixtral": Family("server.models.mixtral", "Mixtral 8x7B and 8x22B"),
    "olmo2": Family("server.models.olmo", "OLMo 2"),
    "olmo3": Family("server.models.olmo", "OLMo 3"),
    "olmoe": Family("server.models.olmo", "OLMoE"),
    "phi": Family("server.models.phi", "Phi-1, 1.5 and 2"),
    "phi3": Family("server.models.phi3", "Phi-3, 3.5 and 4 without experts"),
    "qwen2": Family("server.models.qwen", "Qwen2 and Qwen2.5"),
    "qwen2_moe": Family("server.models.qwen_moe", "Qwen1.5 and Qwen2 with experts"),
    "qwen3": Family("server.models.qwen", "Qwen3 without experts"),
    "qwen3_moe": Family("server.models.qwen_moe", "Qwen3 with experts"),
    "smollm3": Family("server.models.smollm3", "SmolLM3"),
    "starcoder2": Family("server.models.starcoder2", "StarCoder2"),
}
"""By the ``model_type`` of a checkpoint; others are served by transformers' modules where they can be."""


def may_need_modules(path: Path) -> bool:
    """Whether the checkpoint at `path` may be of a family without a file here: transformers' modules compute
    it then, which transformers only has in a process that imported torch before it."""
    try:
        fields = read_json(path / "config.json")
        types = {fields.get("model_type"), (fields.get("text_config") or {}).get("model_type")}
    except (ModelError, AttributeError, TypeError):
        return False  # a GGUF file, of families with files; or nothing that can be served at all
    return not types & FAMILIES.keys()


def read_architecture(hf: Any) -> Architecture:
    """What the model of a checkpoint is.

    Args:
        hf: transformers' configuration of it.

    Raises:
        ModelError: a family or a variant of it that is not supported.
    """
    if not getattr(hf, "is_causal", True):  # transformers heeds it in every family
        raise ModelError(f"{hf.model_type}: tokens that see later ones (is_causal: false) are not supported")
    from server.models.reading import cache_limit  # with torch

    architecture = _read_own(hf) if hf.model_type in FAMILIES else _read_foreign(hf)
    limit = cache_limit(hf, architecture.spec)
    limits = [known for known in (architecture.limit, limit) if known is not None]
    return replace(architecture, limit=min(limits, key=lambda known: known.tokens, default=None))


def _read_own(hf: Any) -> Architecture:
    from server.models.reading import check_layer_types

    architecture: Architecture = import_module(FAMILIES[hf.model_type].module).read(hf)
    windows = any(layer.attention.window is not None for layer in architecture.spec.layers)
    check_layer_types(hf, ("full_attention", "sliding_attention") if windows else ("full_attention",))
    return architecture


def _read_foreign(hf: Any) -> Architecture:
    architecture: Architecture
    try:
        architecture = import_module("server.models.foreign.read").read_foreign(hf)
    except ModelError as error:
        raise ModelError(
            f"model type {hf.model_type!r} is not supported by continuous batching, not by transformers' "
            f"modules either: {error}; static batching may serve it (own families: {', '.join(FAMILIES)})"
        ) from error
    return architecture
