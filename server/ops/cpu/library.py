"""The compiled kernels as Python functions."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_int, c_int64, c_void_p
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from server.ops.cpu.build import NativeError, build
from server.ops.cpu.describe import describe_cache
from server.ops.cpu.structs import Batch, CodesPart, CodesSource, Layer, Matrix, ModelSpec, Step
from server.ops.cpu.variants import Variant, usable_variants

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""What the kernels compute with, by the number that stands for it in C."""


class NativeLibrary:
    """One build of the kernels, loaded.

    Args:
        path: the shared library.
        variant: what it was built for.

    Raises:
        NativeError: it does not load, or the system withholds the tile registers.
    """

    def __init__(self, path: Path, variant: Variant) -> None:
        self.variant = variant
        try:
            functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeError(f"{path} does not load: {error}") from error
        functions.native_start.restype = c_bool
        functions.native_spans_like_decodes.restype = c_bool
        functions.native_spans_like_decodes.argtypes = [c_int]
        functions.native_packed_bytes.restype = c_int64
        functions.native_packed_bytes.argtypes = [c_int, c_int64, c_int64]
        functions.native_pack.argtypes = [c_int, c_void_p, c_int, c_int, c_bool, c_void_p, c_int]
        functions.native_codes_bytes.restype = c_int64
        functions.native_codes_bytes.argtypes = [c_void_p, c_int]
        functions.native_pack_codes.argtypes = [c_void_p, c_void_p, c_int, c_int]
        functions.native_multiply.argtypes = [c_int, c_void_p, c_int, c_int, c_void_p, c_int, c_void_p, c_int]
        functions.native_model.restype = c_void_p
        functions.native_model.argtypes = [c_int, c_void_p, c_void_p]
        functions.native_free.argtypes = [c_void_p]
        functions.native_forward.argtypes = [c_void_p] * 3
        functions.native_forward.restype = c_bool
        functions.native_attend.argtypes = [c_int, *[c_void_p] * 5, c_int]
        functions.native_choose.argtypes = [
            c_void_p, c_int64, c_int64, *[c_void_p] * 6, c_int64, c_void_p, c_int,
        ]  # fmt: skip
        functions.native_exclude.argtypes = [c_void_p, c_int64, *[c_void_p] * 3, c_int64, c_int64, c_int]
        if not functions.native_start():
            raise NativeError(f"the system gives no leave for {variant.name}")
        self._functions = functions

    def computes_chunks_like_decodes(self, dtype: torch.dtype) -> bool:
        """Whether a token's keys, values and attention have the same bits in a chunk as in a decode."""
        return bool(self._functions.native_spans_like_decodes(DTYPES[dtype]))

    def packed_bytes(self, dtype: torch.dtype, outputs: int, inputs: int) -> int:
        """Size of a weight [outputs, inputs] once packed."""
        return int(self._functions.native_packed_bytes(DTYPES[dtype], outputs, inputs))

    def pack(self, weight: Tensor, target: int, *, halves: bool = False) -> None:
        """Pack `weight` [outputs, inputs] at address `target`.

        Args:
            weight: contiguous, on the CPU.
            halves: it is two matrices on top of each other (gate and up), to be interleaved.
        """
        outputs, inputs = weight.shape
        self._functions.native_pack(
            DTYPES[weight.dtype], weight.data_ptr(), outputs, inputs, halves, target, torch.get_num_threads()
        )

    def codes_bytes(self, part: CodesPart, inputs: int) -> int:
        """Size of a part of a matrix of codes."""
        return int(self._functions.native_codes_bytes(ctypes.byref(part), inputs))

    def pack_codes(self, part: CodesPart, source: CodesSource, inputs: int) -> None:
        """Pack a part of a matrix of codes where it says that it lies."""
        self._functions.native_pack_codes(
            ctypes.byref(part), ctypes.byref(source), inputs, torch.get_num_threads()
        )

    def multiply(self, dtype: torch.dtype, matrix: Matrix, outputs: int, x: Tensor) -> Tensor:
        """x Wᵀ with a packed matrix, computed in `dtype`.

        Args:
            x: float32 [rows, inputs], contiguous; inputs in the order that the matrix has them in.

        Returns:
            float32 [rows, outputs].
        """
        rows, inputs = x.shape
        y = torch.empty(rows, outputs)
        self._functions.native_multiply(
            DTYPES[dtype],
            ctypes.byref(matrix),
            outputs,
            inputs,
            x.data_ptr(),
            rows,
            y.data_ptr(),
            torch.get_num_threads(),
        )
        return y

    def model(self, dtype: torch.dtype, spec: ModelSpec, layers: list[Layer]) -> NativeModel:
        """A model over weights that the caller keeps alive."""
        array = (Layer * len(layers))(*layers)
        handle = self._functions.native_model(DTYPES[dtype], ctypes.byref(spec), array)
        return NativeModel(self._functions, handle)

    def attend(self, layer: Layer, batch: Batch, cache: Tensor, qkv: Tensor) -> Tensor:
        """Norm and rotate heads, store keys and values, and attend, for one layer.

        Args:
            layer: of which only what attention is made of is read.
            cache: [blocks, layers, 2, block_size, kv_heads, head_dim].
            qkv: float32 [tokens, (heads + 2 × kv_heads) × head_dim]; overwritten.

        Returns:
            float32 [tokens, heads × head_dim].
        """
        out = torch.empty(qkv.shape[0], layer.attention.heads * layer.attention.head_dim)
        self._functions.native_attend(
            DTYPES[cache.dtype],
            ctypes.byref(layer),
            ctypes.byref(batch),
            ctypes.byref(describe_cache(cache)),
            qkv.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def choose(
        self,
        scores: Tensor,
        temperatures: np.ndarray,
        seeds: np.ndarray,
        answers: np.ndarray,
        positions: np.ndarray,
        masks: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> Tensor:
        """The next token of each line, drawn or the likeliest, as `server.sampling.choice.Choose` has it."""
        scores = scores.contiguous()
        tokens = torch.empty(len(scores), dtype=torch.int64)
        numbers = np.stack((seeds, answers, positions)).astype(np.int64, copy=False)  # in one piece
        divisors = np.ascontiguousarray(temperatures, np.float32)
        first, size = numbers.ctypes.data, numbers.strides[0]
        words = np.empty((0, 0), np.int32) if masks is None else np.ascontiguousarray(masks)
        mask_of = np.empty(0, np.int64) if rows is None else np.ascontiguousarray(rows, np.int64)
        self._functions.native_choose(
            scores.data_ptr(),
            *scores.shape,
            divisors.ctypes.data,
            first,
            first + size,
            first + 2 * size,
            words.ctypes.data if words.size else None,
            mask_of.ctypes.data,
            words.shape[1],
            tokens.data_ptr(),
            torch.get_num_threads(),
        )
        return tokens

    def exclude(self, scores: Tensor, at: np.ndarray, masks: np.ndarray, rows: np.ndarray) -> None:
        """Exclude what masks do not allow, as `server.sampling.masks.Exclude` has it."""
        lines, chosen = np.ascontiguousarray(at, np.int64), np.ascontiguousarray(rows, np.int64)
        words = np.ascontiguousarray(masks)
        self._functions.native_exclude(
            scores.data_ptr(),
            scores.shape[1],
            lines.ctypes.data,
            words.ctypes.data,
            chosen.ctypes.data,
            words.shape[1],
            len(lines),
            torch.get_num_threads(),
        )


class NativeModel:
    """A model inside the library."""

    def __init__(self, functions: ctypes.CDLL, handle: int) -> None:
        self._functions = functions
        self._handle = handle

    def forward(self, step: Step, logits: Tensor) -> None:
        """Compute the tokens of `step`: its caches and `logits` (float32 [rows, vocab]) are written.

        Raises:
            RuntimeError: another rank of a split model is gone.
        """
        if not self._functions.native_forward(self._handle, ctypes.byref(step), logits.data_ptr()):
            raise RuntimeError("another rank is gone")

    def __del__(self) -> None:
        self._functions.native_free(self._handle)


def load() -> NativeLibrary:
    """The best build of the kernels for this processor, compiled now if it never was.

    Raises:
        NativeError: there is none, for the reason given.
    """
    reasons = []
    for variant in usable_variants():
        try:
            return NativeLibrary(build(variant), variant)
        except NativeError as error:
            reasons.append(f"{variant.name}: {error}")
    raise NativeError("; ".join(dict.fromkeys(reason.split(": ", 1)[1] for reason in reasons)))
