"""Linear layers whose weights are filled from a checkpoint, several projections in one product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.checkpoints.tensors import Part
from server.layers.codes import CodesForm, CodesMatrix
from server.layers.layout import Layout
from server.layers.shard import Shard

Split = Literal["outputs", "inputs"]
"""What ranks divide among them of a matrix: outputs, whose products stand side by side, or inputs, whose
products are added up."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a tensor of the checkpoint goes, and which part of it is a rank's.

    Attributes:
        tensor: to copy it into, often a slice of a fused one; of the size of a rank's part.
        axis: dimension along which ranks split what is stored; None: each has all of it.
        parts: sizes of the pieces that are fused along `axis` and split one by one; empty: it is one piece.
        copies: of each piece, how many neighbouring ranks have the same part of it (key heads, where there
            are more ranks than heads); empty: each has a part of its own.
        total: what is stored along `axis`, where ranks' parts are rounded up and the last ones end in zeros.
        first_only: the first rank has it and the others have zeros, for their products are added up.
        offset: what is added to the stored numbers.
        origin: the stored numbers count something of which each rank has this many, from its own first on.
        layout: the order of what is stored, if not the model's; `axis` and `parts` are of the model's.
    """

    tensor: Tensor
    axis: int | None = None
    parts: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()
    total: int | None = None
    first_only: bool = False
    offset: float = 0.0
    origin: int = 0
    layout: Layout | None = None

    def stored_shape(self, ranks: int = 1) -> tuple[int, ...]:
        """Of the checkpoint's tensor, where the model is split over `ranks`."""
        shape = list(self.tensor.shape)
        if self.axis is not None:
            whole = sum(size * ranks // copies for size, copies in self._pieces())
            shape[self.axis] = whole if self.total is None else self.total
        return tuple(shape) if self.layout is None else self.layout.stored_shape(tuple(shape))

    def part(self, shard: Shard) -> Part | None:
        """What a rank needs of the stored tensor; None: all of it."""
        if self.axis is None or shard.ranks == 1:
            return None
        ranges, begin, layout = [], 0, self.layout
        for size, copies in self._pieces():
            first = begin + shard.rank // copies * size
            ranges.append((first, first + size))
            begin += size * shard.ranks // copies
        if self.total is not None:
            ranges = [(min(first, self.total), min(end, self.total)) for first, end in ranges]
        return Part(self.axis if layout is None else layout.stored_axis(self.axis, self.tensor.dim()), ranges)

    def _pieces(self) -> list[tuple[int, int]]:
        """(size of a rank's part, ranks that have the same one) of each piece that is split by itself."""
        assert self.axis is not None
        sizes = self.parts
        if not sizes or (self.layout is not None and self.layout.mixes):  # what is fused stands side by side
            sizes = (self.tensor.shape[self.axis],)
        return list(zip(sizes, self.copies or (1,) * len(sizes), strict=True))

    def arrange(self, stored: Tensor, shard: Shard) -> Tensor:
        """A rank's `part` of what is stored, in the model's order."""
        if self.layout is not None:
            stored = self.layout.arrange(stored)
        if self.origin:
            stored = stored - self.origin * shard.rank
        return torch.zeros_like(stored) if self.first_only and shard.rank else stored

    def shard(self, stored: Tensor, rank: int = 0, ranks: int = 1) -> Tensor:
        """The part of `stored` that belongs to `rank` of `ranks`."""
        shard = Shard(rank, ranks)
        part = self.part(shard)
        return self.arrange(stored if part is None else part.of(stored), shard)


WeightMap = dict[str, Target]
"""Checkpoint tensor name → where it goes."""


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """An uninitialised parameter; the loader fills it."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)


class LinearLayer(nn.Module):
    """``y = x Wᵀ + b`` for one or several projections of the same input, however W is stored.

    Models and `ops` know of a layer what this class says; a weight format brings a class of its own
    (`server.quantization.linear`), and so does what changes the products of another layer. Backends fuse what
    is `dense`, and codes that they can read. Of any other layer they call `forward` or `add_to`, or refuse
    the model by its class.

    Attributes:
        dense: W is the floats in `weight` and nothing else, for whatever product is fastest; otherwise
            only the layer multiplies with it, or who can read its codes (`small_codes`).
        outputs: features of each projection.
        axes: by the last part of a tensor's name, its dimensions (outputs, inputs); None: it has no such.
    """

    dense = False
    axes: ClassVar[Mapping[str, tuple[int | None, int | None]]] = {"weight": (0, 1), "bias": (0, None)}
    weight: Tensor
    outputs: list[int]
    bias: Tensor | None

    def weights(self, *names: str) -> dict[str, Tensor]:
        """Checkpoint tensor name → the tensor to copy it into, one of `names` for each projection."""
        raise NotImplementedError

    def targets(
        self,
        split: Split | None,
        *names: str,
        parts: Sequence[int] = (),
        copies: Sequence[Sequence[int]] | None = None,
    ) -> WeightMap:
        """`weights`, and which part of each is a rank's.

        Args:
            split: what ranks divide among them; None: nothing.
            parts: a rank's outputs of the pieces that a stored projection is fused of, where it is.
            copies: of each projection, `Target.copies` of its outputs; None: nothing is there twice.
        """
        found: WeightMap = {}
        same = dict(zip(names, copies or ((),) * len(names), strict=True))
        for name, tensor in self.weights(*names).items():
            projection, _, kind = name.rpartition(".")
            outputs, inputs = self.axes[kind]
            if split == "outputs":
                # where several codes share a word, a piece has fewer words than outputs
                size = 0 if outputs is None else tensor.shape[outputs]
                pieces = tuple(part * size // sum(parts) for part in parts)
                found[name] = Target(tensor, outputs, pieces, tuple(same[projection]))
            elif split == "inputs":
                found[name] = Target(tensor, inputs, first_only=name.endswith(".bias"))
            else:
                found[name] = Target(tensor)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, inputs] → [tokens, sum(outputs)]."""
        raise NotImplementedError

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        """``residual + forward(x)``: [tokens, outputs]; may reuse `residual`, which is contiguous."""
        y: Tensor = residual + self(x)
        return y

    def objection_to_codes(self) -> str | None:
        """Why `small_codes` cannot give the weight; None: it can."""
        return f"they do not compute layers of class {type(self).__name__}"

    def codes_forms(self) -> Sequence[tuple[CodesForm, int, int]]:
        """(form, outputs, inputs) of each piece that `small_codes` will give."""
        raise NotImplementedError

    def small_codes(self) -> Iterator[CodesMatrix]:
        """The loaded weight for kernels that multiply with codes, in pieces of one form, by outputs."""
        raise NotImplementedError

    def release(self) -> None:
        """Let the loaded weight go, once something else holds it."""
        raise NotImplementedError


class Linear(LinearLayer):
    """A weight of floats.

    Args:
        inputs: features of x.
        outputs: features of each projection; their weights are stacked in this order.
        bias: whether the projections have one.
    """

    dense = True

    def __init__(
        self, inputs: int, *outputs: int, bias: bool = False, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.outputs = list(outputs)
        self.weight = empty_parameter(sum(outputs), inputs, dtype=dtype, device=device)
        self.bias = empty_parameter(sum(outputs), dtype=dtype, device=device) if bias else None

    def weights(self, *names: str) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, weight in zip(names, torch.split(self.weight.data, self.outputs), strict=True):
            found[f"{name}.weight"] = weight
        if self.bias is not None:
            for name, bias in zip(names, torch.split(self.bias.data, self.outputs), strict=True):
                found[f"{name}.bias"] = bias
        return found

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)

    def release(self) -> None:
        self.weight = empty_parameter(0, dtype=self.weight.dtype, device=self.weight.device)
