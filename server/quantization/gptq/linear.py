"""A linear layer with GPTQ weights: takes what a checkpoint holds, keeps what a kernel wants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from tqdm import tqdm

from server.checkpoints.errors import ModelError
from server.layers.codes import CodesForm, CodesMatrix
from server.layers.linear import Split, WeightMap
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.checks import check_values
from server.quantization.gptq.kernels.base import GPTQKernel
from server.quantization.gptq.kernels.select import KernelChoice, choose_kernels
from server.quantization.gptq.memory import return_freed_pages
from server.quantization.gptq.parts import AXES, split_by_inputs
from server.quantization.gptq.weight import QuantizedWeight, weight_of
from server.quantization.linear import QuantizedLinear


class GPTQLinear(QuantizedLinear):
    """``y = x Wᵀ + b`` for one or several projections of the same input.

    It is made with empty tensors of the checkpoint's layout (`weights` says which tensor goes
    where). `pack_into`, called once they are filled, gives them to a kernel, which keeps them in its own
    layout, and lets them go; only then can it be called.

    Args:
        checkpoint: the checkpoint that holds the projections.
        names: of the projections in it.
        inputs: features of x.
        outputs: features of each projection.
        dtype: of the bias.

    Raises:
        ModelError: sizes that cannot be packed so.
    """

    format_name = "gptq"
    axes: ClassVar[dict[str, tuple[int | None, int | None]]] = AXES

    def __init__(
        self,
        checkpoint: GPTQCheckpoint,
        names: Sequence[str],
        inputs: int,
        outputs: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.config = config = checkpoint.config
        self.names = tuple(names)
        self.inputs, self.outputs = inputs, list(outputs)
        self._check_sizes()
        total, groups, per_word = sum(outputs), config.groups(inputs), config.codes_per_word

        self.qweight: Tensor | None
        self.qzeros: Tensor | None
        self.scales: Tensor | None
        self.g_idx: Tensor | None
        self.bias: Tensor | None

        def register(name: str, *shape: int, dtype: torch.dtype, needed: bool = True) -> None:
            empty = torch.zeros(*shape, dtype=dtype, device=device) if needed else None
            self.register_buffer(name, empty)

        ordered = all(checkpoint.has(names, "g_idx"))
        self._biased = checkpoint.has(names, "bias")  # beside one that has a bias, one without has zeros
        register("qweight", inputs // per_word, total, dtype=torch.int32)
        register("qzeros", groups, total // per_word, dtype=torch.int32)
        register("scales", groups, total, dtype=checkpoint.scales_dtype)
        register("g_idx", len(outputs) * inputs, dtype=torch.int32, needed=ordered)
        register("bias", total, dtype=dtype, needed=any(self._biased))
        self.kernels = nn.ModuleList()

    def _check_sizes(self) -> None:
        config, group_size = self.config, self.config.group_size
        if self.inputs % max(group_size, config.codes_per_word):
            raise ModelError(f"{self.names[0]}: {self.inputs} inputs are not a multiple of the group size")
        for name, size in zip(self.names, self.outputs, strict=True):
            if size % config.codes_per_word:
                raise ModelError(f"{name}: {size} outputs are not a multiple of {config.codes_per_word}")

    def weights(self, *names: str) -> dict[str, Tensor]:
        """Checkpoint tensor name → the tensor to copy it into, for projections called `names`."""
        found: dict[str, Tensor] = {}
        for name, parts in zip(names, self._parts(), strict=True):
            found |= {f"{name}.{kind}": part for kind, part in parts.items()}
        if self.bias is not None:
            for name, part, biased in zip(
                names, torch.split(self.bias, self.outputs), self._biased, strict=True
            ):
                if biased:
                    found[f"{name}.bias"] = part
        return found

    def targets(
        self,
        split: Split | None,
        *names: str,
        parts: Sequence[int] = (),
        copies: Sequence[Sequence[int]] | None = None,
    ) -> WeightMap:
        """As `LinearLayer.targets`; groups are split as their inputs are."""
        found = super().targets(split, *names, parts=parts, copies=copies)
        if split != "inputs":
            return found
        return {
            name: split_by_inputs(target, name.rpartition(".")[2], self.config, self.inputs)
            for name, target in found.items()
        }

    def _parts(self) -> list[dict[str, Tensor]]:
        """The tensors of each projection, as views."""
        assert self.qweight is not None and self.qzeros is not None and self.scales is not None, "packed"
        words = [size // self.config.codes_per_word for size in self.outputs]
        parts: list[dict[str, Tensor]] = [
            {"qweight": codes, "qzeros": zeros, "scales": scales}
            for codes, zeros, scales in zip(
                torch.split(self.qweight, self.outputs, dim=1),
                torch.split(self.qzeros, words, dim=1),
                torch.split(self.scales, self.outputs, dim=1),
                strict=True,
            )
        ]
        if self.g_idx is not None:
            for part, g_idx in zip(parts, torch.split(self.g_idx, self.inputs), strict=True):
                part["g_idx"] = g_idx
        return parts

    def shares_order(self) -> bool:
        """Whether the inputs of all projections are in groups of the same members."""
        if self.g_idx is None:
            return True
        first, *others = torch.split(self.g_idx, self.inputs)
        return all(torch.equal(first, other) for other in others)

    def quantized_weights(self) -> list[QuantizedWeight]:
        """What the checkpoint's tensors say: one matrix where the orders of all projections agree,
        else one for each.

        Raises:
            ModelError: tensors that contradict each other.
        """
        assert self.qweight is not None and self.qzeros is not None and self.scales is not None, "packed"
        for name, part in zip(self.names, self._parts(), strict=True):
            check_values(self.config, name, part)
        if self.shares_order():
            order = None if self.g_idx is None else self.g_idx[: self.inputs]
            return [weight_of(self.config, self.qweight, self.qzeros, self.scales, order, self.names[0])]
        return [
            weight_of(self.config, part["qweight"], part["qzeros"], part["scales"], part["g_idx"], name)
            for name, part in zip(self.names, self._parts(), strict=True)
        ]

    def objection_to_codes(self) -> str | None:
        if not self.shares_order():
            return f"the inputs of {self.names[0]} are in another order than those of its neighbours"
        return None

    def codes_forms(self) -> Sequence[tuple[CodesForm, int, int]]:
        (weight,) = self.quantized_weights()
        return [(weight.form, weight.outputs, weight.inputs)]

    def small_codes(self) -> Iterator[CodesMatrix]:
        (weight,) = self.quantized_weights()
        yield weight.small_codes(weight.form)

    @classmethod
    def pack(cls, layers: Sequence[Self], dtype: torch.dtype, device: torch.device) -> dict[str, str]:
        """Give the loaded weights of `layers` to the fastest kernel, layer by layer."""
        choice = choose_kernels(layers[0].config.bits, device, dtype)
        for layer in tqdm(layers, "packing weights", unit="layer", mininterval=1.0):
            layer.to(device)
            layer.pack_into(choice)
        return choice.describe()

    def pack_into(self, choice: KernelChoice) -> None:
        """Turn the checkpoint's tensors, now filled, into those of a kernel.

        Raises:
            ModelError: tensors that contradict each other.
        """
        for weight in self.quantized_weights():
            self.kernels.append(choice.kernel_for(weight))
        self.release()

    def release(self) -> None:
        """Let the checkpoint's tensors go, once something else holds the weights."""
        self.qweight = self.qzeros = self.scales = self.g_idx = None
        return_freed_pages()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] → [..., sum(outputs)], in the type of x."""
        rows = x.reshape(-1, self.inputs)
        products = [kernel(rows) for kernel in self.kernels]
        y = products[0] if len(products) == 1 else torch.cat(products, dim=1)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], y.shape[-1])

    def add_to(self, x: Tensor, residual: Tensor) -> Tensor:
        """``residual + forward(x)``: [rows, outputs]; may reuse `residual`, which is contiguous."""
        kernel = self.kernels[0]
        if len(self.kernels) == 1 and self.bias is None and isinstance(kernel, GPTQKernel):
            return kernel.add_to(x, residual)
        y: Tensor = residual + self(x)
        return y

    def extra_repr(self) -> str:
        kernels = {kernel.name for kernel in self.kernels if isinstance(kernel, GPTQKernel)}
        return f"{self.inputs}, {self.outputs}, bits={self.config.bits}, kernels={sorted(kernels)}"
