"""What the model of a checkpoint is, and what its answers end with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.checkpoints.errors import ModelError
from server.checkpoints.hf_config import read_hf_config
from server.checkpoints.lengths import eos_token_ids
from server.layers.spec import ModelSpec
from server.models.registry import FAMILIES, read_architecture
from server.models.split import split
from utils.messages import one_line

if TYPE_CHECKING:
    from server.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A checkpoint's configuration.

    Attributes:
        model_type: its family.
        architecture: its model.
        max_length: positions that it was trained on.
        eos_token_ids: tokens that end an answer.
        hf: transformers' configuration, or its data.
    """

    model_type: str
    architecture: Architecture
    max_length: int
    eos_token_ids: tuple[int, ...]
    hf: Any

    @classmethod
    def load(cls, path: Path, *, trust_remote_code: bool = False, hf: Any = None) -> ModelConfig:
        """Read the configuration of the checkpoint at `path`.

        Args:
            path: its directory, or a GGUF file.
            hf: the data of transformers' configuration; None: transformers reads it.

        Raises:
            ModelError: no such checkpoint, or a model that is not supported.
        """
        hf = hf or read_hf_config(path, trust_remote_code=trust_remote_code)
        ends, text = eos_token_ids(path, hf), hf.get_text_config()
        if hf.model_type not in FAMILIES and text.model_type in FAMILIES:
            hf = text  # of a model that sees images, too
        try:
            architecture = read_architecture(hf)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"the configuration makes no model of type {hf.model_type!r}"
            raise ModelError(f"{path}: {what}: {one_line(error)}") from error
        return cls(hf.model_type, architecture, hf.max_position_embeddings, ends, hf)

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.architecture.spec

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.spec.vocab_size

    def served_to(self, max_length: int) -> ModelConfig:
        """The same for sequences of at most `max_length` tokens, as `ModelSpec.served_to`.

        Raises:
            ModelError: the family's file supports no sequences as long.
        """
        limit = self.architecture.limit
        if limit is not None and max_length > limit.tokens:
            raise ModelError(
                f"{limit.reason} is not supported for model_max_length {max_length}: "
                f"set it to at most {limit.tokens}"
            )
        return replace(self, architecture=replace(self.architecture, spec=self.spec.served_to(max_length)))

    def split(self, ranks: int) -> ModelConfig:
        """What each of `ranks` ranks computes.

        Raises:
            ModelError: the model cannot be split, or not over so many.
        """
        own = self.architecture
        if ranks > 1 and (own.load is not None or own.decoder.own_forward):
            raise ModelError(
                f"model type {self.model_type!r} is computed by modules that cannot be split over {ranks} "
                "ranks: set parallel_config.tensor_parallel_size to 1"
            )
        return self if ranks == 1 else replace(self, architecture=replace(own, spec=split(own.spec, ranks)))
