"""What a weight format is: it knows its checkpoints, and makes the layers that hold their weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.checkpoints.files import StoredTensor, refuse_codes
from server.checkpoints.tensors import read_tensors
from server.layers.expert_stack import ExpertStack
from server.layers.linear import LinearLayer
from server.quantization.linear import QuantizedLinear


@dataclass(frozen=True)
class OpenFormat(ABC):
    """A checkpoint in a format, its headers read and found to be sound.

    Attributes:
        path: its directory, or its only file.
        entry: the file with the weights, or the index of the files that hold them.
        tensors: what `read` gives, by name.
        layers: names of the quantized projections that stay so.
    """

    path: Path
    entry: Path
    tensors: Mapping[str, StoredTensor]
    layers: frozenset[str]

    def __post_init__(self) -> None:
        refuse_codes(self.tensors, self.layers)

    def quantizes(self, names: Sequence[str]) -> bool:
        """Whether the projections `names`, which share one input, are quantized.

        Raises:
            ModelError: some are and some are not.
        """
        count = len(self.layers.intersection(names))
        if count not in (0, len(names)):
            raise ModelError(f"{self.path}: only some of {', '.join(names)} are quantized, not supported")
        return count > 0

    def for_model(self, known: Collection[str]) -> OpenFormat:
        """The same with `tensors` named as a model's are, for formats with names of their own.

        Args:
            known: names of the model's tensors.
        """
        return self

    def for_float8(self, objection: str | None) -> OpenFormat:
        """The same, with matrices of FP8 kept as they are where a device multiplies them.

        Args:
            objection: why it does not; None: it does.
        """
        return self

    def for_blocks(self, objection: str | None) -> OpenFormat:
        """The same, with blocks of GGUF kept as they are where a device multiplies with them.

        Args:
            objection: why it does not; None: it does.
        """
        return self

    def head(self, names: Sequence[str], *, dtype: torch.dtype, device: torch.device) -> LinearLayer | None:
        """A filled layer for the logits, if the format keeps its weight as it is stored; None: it is floats.

        Args:
            names: of the head, and of the embedding where that stands for it.
            dtype: of activations.
        """
        return None

    def for_experts(self, objection: str | None) -> OpenFormat:
        """The same, with matrices of experts kept as they are where a device multiplies them so.

        Called behind `for_float8`.

        Args:
            objection: why no kernel makes floats of them in tiles; None: one does.
        """
        return self

    def stack(
        self,
        names: Sequence[str],
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> ExpertStack | None:
        """Empty matrices for those of all experts of a layer; None: they are floats.

        Args:
            names: of all experts together, or of the projections of every expert in turn.
            shape: experts, outputs and inputs.
            dtype: of activations.

        Raises:
            ModelError: only some of them are quantized, or they cannot be multiplied.
        """
        return None

    @property
    def as_stored(self) -> bool:
        """Whether `read` gives what the files hold, so that whoever reads those themselves gets the same."""
        return type(self).read is OpenFormat.read

    def read(self, names: Iterable[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each of `names`, file by file.

        Args:
            dtype: in which weights come that are not kept as they are stored.

        Raises:
            ModelError: a file cannot be read.
        """
        return read_tensors(self.tensors, names)

    def objection_to_split(self) -> str | None:
        """Why ranks cannot share its matrices among them; None: they can."""
        return None

    def describe(self, dtype: torch.dtype) -> dict[str, str] | None:
        """Name and reason of what weights have become, for the operator; None: quantized layers say so."""
        return None

    @abstractmethod
    def linear(
        self,
        names: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> QuantizedLinear:
        """An empty layer for the quantized projections `names`, which share their input.

        Args:
            inputs: features of x.
            outputs: features of each projection.
            dtype: of activations and biases.

        Raises:
            ModelError: projections that cannot share a layer, or sizes that the format does not have.
        """

    def default_dtype(self, device: torch.device) -> torch.dtype:
        """Of activations, where the configuration leaves it open."""
        return torch.bfloat16


@dataclass(frozen=True)
class OpenFloats(OpenFormat):
    """A checkpoint whose weights become floats when they are read: `layers` is empty."""

    def linear(
        self,
        names: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> QuantizedLinear:
        raise AssertionError("no layer stays quantized")


class WeightFormat(ABC):
    """A way to store quantized weights.

    Attributes:
        name: in configurations (`quantization`) and messages.
        options: configuration keys that are this format's alone.
        needs_consent: it is refused where the configuration does not speak of quantization.
    """

    name: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    needs_consent: ClassVar[bool] = True

    @abstractmethod
    def detect(self, path: Path, config_fields: Mapping[str, Any]) -> bool:
        """Whether the checkpoint at `path` says that it is in this format. Cheap.

        Args:
            path: a directory, or a file.
            config_fields: of its ``config.json``; empty where there is none.
        """

    @abstractmethod
    def open(self, path: Path, options: Mapping[str, str]) -> OpenFormat:
        """Read and check the headers of the checkpoint at `path`.

        Args:
            options: values of those of `options` that are set.

        Raises:
            ModelError: not a checkpoint of this format, or one that is not supported.
        """


def declared_method(config_fields: Mapping[str, Any]) -> str | None:
    """The ``quant_method`` that a ``config.json`` names; None: none."""
    fields = config_fields.get("quantization_config")
    return fields.get("quant_method") if isinstance(fields, dict) else None
