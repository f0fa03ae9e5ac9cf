"""The structures of ``src/``, field by field."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p


class Shape(Structure):
    """Sizes of a model (``model.h``)."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "inner", "heads", "kv_heads", "head_dim")),
        *((name, c_int32) for name in ("vocab", "block_size", "threads")),
        ("norm_eps", c_float),
    )


class Matrix(Structure):
    """A packed matrix: numbers, or codes of 4 bits if `group` is not 0 (``int4.h``)."""

    _fields_ = (("data", c_void_p), ("order", c_void_p), ("group", c_int32), ("has_zeros", c_int32))


class Int4Source(Structure):
    """Addresses of what a matrix of codes is packed from (``int4.h``)."""

    _fields_ = (
        *((name, c_void_p) for name in ("words", "scales", "zeros", "order", "outputs")),
        ("columns", c_int64),
    )


class LayerWeights(Structure):
    """One layer's matrices, and the addresses of its other weights (``model.h``)."""

    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "feed_forward_norm", "query_norm", "key_norm")),
        *((name, Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("qkv_bias", "out_bias", "gate_up_bias", "down_bias")),
    )


class OuterWeights(Structure):
    """Addresses of the weights around the layers (``model.h``)."""

    _fields_ = tuple((name, c_void_p) for name in ("embedding", "head", "norm", "cosine", "sine"))


class Span(Structure):
    """Consecutive tokens of one sequence (``cache.h``)."""

    _fields_ = (("begin", c_int64), ("end", c_int64), ("start", c_int64), ("blocks", c_void_p))


class Batch(Structure):
    """The tokens of a step (``cache.h``)."""

    _fields_ = (
        *((name, c_int64) for name in ("num_tokens", "num_decodes", "num_spans", "num_logits")),
        *((name, c_void_p) for name in ("token_ids", "positions", "slot_blocks", "slot_offsets")),
        ("decode_lengths", c_void_p),
        ("decode_tables", c_void_p),
        ("decode_width", c_int64),
        ("spans", c_void_p),
        ("logit_rows", c_void_p),
    )
