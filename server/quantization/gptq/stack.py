"""The matrices of all experts of a layer as codes in groups: GPTQ, and what is repacked into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.checkpoints.errors import ModelError
from server.layers.codes import CodesForm, CodesMatrix
from server.layers.expert_stack import ExpertStack
from server.layers.linear import Split, Target
from server.quantization.gptq.checkpoint import GPTQCheckpoint
from server.quantization.gptq.checks import check_values
from server.quantization.gptq.config import GPTQConfig
from server.quantization.gptq.memory import return_freed_pages
from server.quantization.gptq.packing import shift_zeros, unpack_columns
from server.quantization.gptq.parts import AXES, split_by_inputs
from server.quantization.gptq.weight import QuantizedWeight, form_of, order_of

PIECE = 128
"""Inputs that Triton kernels take at once."""


class GroupedStack(ExpertStack):
    """Codes of 4 or 8 bits, with a scale and a zero point for each group of inputs.

    It is made with empty tensors of the checkpoint's layout, one expert after the other. `settle`, called
    once they are filled, brings them into the form of the device: on a CPU as they are, on a GPU that of
    `kernels.triton_codes`, in the same memory.

    Args:
        checkpoint: the checkpoint that holds the experts.
        names: of the projections of every expert in turn.
        shape: experts, outputs of an expert's projections together, inputs.

    Attributes:
        group_size: inputs of a group.
        qweight: int32 [experts, inputs / n, outputs], n codes in a word.
        scales: [experts, groups, outputs]; None: they are in `factors`.
        zeros: uint8 [experts, groups, outputs]; None: likewise, or not settled yet.
        order: int64 [experts, inputs]: place → input, where groups are not in the order of inputs.
        words: int32 [experts, inputs / 128, outputs, 4 · bits], for Triton; None: there are none.
        factors: int32 [experts, groups, outputs], likewise: scale and zero point.
        symmetric: every zero point is the middle of the codes; known once it is settled.

    Raises:
        ModelError: sizes that cannot be packed so, or that no kernel multiplies.
    """

    format_name = "gptq"
    qweight: Tensor | None
    qzeros: Tensor | None
    scales: Tensor | None
    zeros: Tensor | None
    g_idx: Tensor | None
    order: Tensor | None
    words: Tensor | None
    factors: Tensor | None

    def __init__(
        self,
        checkpoint: GPTQCheckpoint,
        names: Sequence[str],
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(shape, dtype)
        experts, outputs, inputs = shape
        self.config, self.bits = checkpoint.config, checkpoint.config.bits
        self.names, self.parts = tuple(names), len(names) // experts
        self.group_size = inputs if self.config.group_size == -1 else self.config.group_size
        self.scales_dtype = checkpoint.scales_dtype
        self.symmetric = False
        _check_sizes(self.config, names[0], inputs, outputs // self.parts)
        if device.type == "cuda" and (reason := objection(self, inputs)) is not None:
            raise ModelError(f"experts of {checkpoint.path} cannot be multiplied on a GPU: {reason}")
        per_word, groups = self.config.codes_per_word, inputs // self.group_size
        sizes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "qweight": ((inputs // per_word, outputs), torch.int32),
            "qzeros": ((groups, outputs // per_word), torch.int32),
            "scales": ((groups, outputs), checkpoint.scales_dtype),
        }
        if all(checkpoint.has(names, "g_idx")):
            sizes["g_idx"] = ((self.parts, inputs), torch.int32)
        for name in ("qweight", "qzeros", "scales", "g_idx"):
            size, kind = sizes.get(name, (None, None))
            empty = None if size is None else torch.zeros(experts, *size, dtype=kind, device=device)
            self.register_buffer(name, empty)
        for name in ("zeros", "order", "words", "factors"):
            self.register_buffer(name, None)

    def targets(self, split: Split, expert: int, part: int) -> dict[str, Target]:
        assert self.qweight is not None and self.qzeros is not None and self.scales is not None, "settled"
        size = self.shape[1] // self.parts
        words = size // self.config.codes_per_word
        tensors = {
            "qweight": self.qweight[expert].narrow(1, part * size, size),
            "qzeros": self.qzeros[expert].narrow(1, part * words, words),
            "scales": self.scales[expert].narrow(1, part * size, size),
        }
        if self.g_idx is not None:
            tensors["g_idx"] = self.g_idx[expert, part]
        found: dict[str, Target] = {}
        for kind, tensor in tensors.items():
            outputs, inputs = AXES[kind]
            target = Target(tensor, outputs if split == "outputs" else inputs)
            if split == "inputs":
                target = split_by_inputs(target, kind, self.config, self.shape[2])
            found[kind] = target
        return found

    def settle(self, device: torch.device) -> None:
        self.to(device)
        assert self.qzeros is not None and self.scales is not None, "settled twice"
        for expert in range(len(self)):
            values = {"qzeros": self.qzeros[expert], "scales": self.scales[expert]}
            check_values(self.config, self.names[expert * self.parts], values)
        shifted = shift_zeros(self.qzeros.flatten(0, 1), self.bits, self.config.zero_offset)
        self.zeros = unpack_columns(shifted, self.bits).view(self.scales.shape)
        self.symmetric = bool((self.zeros == 1 << (self.bits - 1)).all())
        self.order = None if self.g_idx is None else self._order(self.g_idx)
        self.qzeros = self.g_idx = None
        if device.type == "cuda":
            self.pack_for_triton()

    def _order(self, g_idx: Tensor) -> Tensor | None:
        """Of the inputs of every expert; None: all are in the order of their groups."""
        inputs = torch.arange(self.shape[2], device=g_idx.device)
        if (g_idx == inputs // self.group_size).all():
            return None
        if not self.config.desc_act:
            raise ModelError(f"{self.names[0]}.g_idx is not in order, but desc_act is false")
        if (g_idx != g_idx[:, :1]).any():
            raise ModelError(
                f"the inputs of {self.names[0]} are in another order than those of its neighbours"
            )
        orders = [order_of(own[0].long(), self.group_size, self.names[0]) for own in g_idx]
        return torch.stack([inputs if order is None else order for order in orders])

    def pack_for_triton(self) -> None:
        """Bring codes, scales and zero points into the form of Triton kernels; codes stay where they are."""
        from server.quantization.gptq.kernels.triton_codes import pack_codes, pack_factors

        assert self.qweight is not None and self.scales is not None and self.zeros is not None, "packed"
        experts, outputs, inputs = self.shape
        words = self.qweight.view(experts, inputs // PIECE, outputs, 4 * self.bits)
        for expert in range(experts):
            words[expert] = pack_codes(self.weight(expert).codes(), self.bits)
        self.words, self.factors = words, pack_factors(self.scales, self.zeros)
        self.qweight = self.scales = self.zeros = None

    def weight(self, expert: int) -> QuantizedWeight:
        """The matrix of an expert as it was stored; not packed."""
        assert self.qweight is not None and self.scales is not None and self.zeros is not None, "packed"
        order = None if self.order is None else self.order[expert]
        return QuantizedWeight(
            self.bits, self.group_size, self.qweight[expert], self.zeros[expert], self.scales[expert], order
        )

    def objection_to_codes(self) -> str | None:
        return None

    def codes_form(self) -> CodesForm:
        assert self.scales is not None, "packed"
        return form_of(self.bits, self.group_size, self.scales.dtype, symmetric=self.symmetric)

    def small_codes(self, expert: int) -> CodesMatrix:
        return self.weight(expert).small_codes(self.codes_form())

    def release(self) -> None:
        self.qweight = self.scales = self.zeros = None
        return_freed_pages()

    def __getitem__(self, expert: int) -> Tensor:
        return self.weight(expert).dequantized(self.dtype)


def _check_sizes(config: GPTQConfig, name: str, inputs: int, outputs: int) -> None:
    if inputs % max(config.group_size, config.codes_per_word):
        raise ModelError(f"{name}: {inputs} inputs are not a multiple of the group size")
    if outputs % config.codes_per_word:
        raise ModelError(f"{name}: {outputs} outputs are not a multiple of {config.codes_per_word}")


def objection(stack: GroupedStack, inputs: int) -> str | None:
    """Why Triton kernels cannot multiply with it; None: they can."""
    halves = (torch.float16, torch.bfloat16)
    if stack.dtype not in halves:
        return f"kernels take codes with float16 and bfloat16, not {str(stack.dtype).removeprefix('torch.')}"
    if stack.scales_dtype not in halves:
        return "scales are neither float16 nor bfloat16"
    if inputs % PIECE:
        return f"{inputs} inputs are no multiple of {PIECE}"
    if stack.group_size % PIECE and PIECE % stack.group_size:
        return f"groups of {stack.group_size} inputs neither divide {PIECE} nor are multiples of it"
    return None
