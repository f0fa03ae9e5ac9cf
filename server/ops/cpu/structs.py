"""The structures of ``src/``, field by field."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p


class Matrix(Structure):
    """A packed matrix: numbers, or codes in `count` parts (``grouped.h``)."""

    _fields_ = (("data", c_void_p), ("order", c_void_p), ("parts", c_void_p), ("count", c_int32))


class CodesPart(Structure):
    """Some stripes of a matrix of codes, and their form (``grouped.h``)."""

    _fields_ = (
        ("data", c_void_p),
        *((name, c_int32) for name in ("stripes", "as_bytes")),
        *((name, c_int32) for name in ("bits", "group", "unit", "scales", "offsets")),
    )


class CodesSource(Structure):
    """Addresses of what a part is packed from (``grouped.h``)."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "offsets", "coarse", "outputs")),
        ("rows", c_int64),
    )


class AttentionSpec(Structure):
    """How a layer attends (``spec.h``)."""

    _fields_ = (
        *((name, c_int32) for name in ("heads", "kv_heads", "head_dim", "window", "norm_scope")),
        *((name, c_float) for name in ("scale", "softcap")),
        ("sinks", c_void_p),
    )


class Norm(Structure):
    """A norm, or where none is one without a weight (``spec.h``)."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", c_float), ("kind", c_int32))


class Rotary(Structure):
    """Angles of a rotary embedding (``spec.h``)."""

    _fields_ = (("cosine", c_void_p), ("sine", c_void_p), ("size", c_int32))


class Experts(Structure):
    """The experts of a feed-forward part, and their weights (``spec.h``)."""

    _fields_ = (
        *((name, c_int32) for name in ("count", "used", "normalized", "shared")),
        *((name, c_void_p) for name in ("up", "down")),
        *((name, Matrix) for name in ("router", "shared_up", "shared_down", "shared_gate")),
        *((name, c_void_p) for name in ("router_bias", "up_bias", "down_bias")),
    )


class Layer(Structure):
    """What a layer is, and its weights (``spec.h``)."""

    _fields_ = (
        ("attention", AttentionSpec),
        ("rotary", Rotary),
        *((name, c_int32) for name in ("cache_group", "cache_index")),
        *((name, c_int32) for name in ("inner", "activation", "gated", "parallel")),
        ("residual_scale", c_float),
        *((name, Norm) for name in ("attention_norm", "attention_post_norm", "query_norm", "key_norm")),
        *((name, Norm) for name in ("feed_forward_norm", "feed_forward_post_norm")),
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, c_void_p) for name in ("qkv_bias", "out_bias", "up_bias", "down_bias")),
        *((name, c_float) for name in ("clamp_limit", "clamp_sharpness")),
        ("experts", Experts),
    )


class Ranks(Structure):
    """Which of several ranks this is, and the memory that they have in common (``ranks.h``)."""

    _fields_ = (("rank", c_int32), ("count", c_int32), ("room", c_int64), ("memory", c_void_p))


class ModelSpec(Structure):
    """What is around the layers (``spec.h``)."""

    _fields_ = (
        *((name, c_int32) for name in ("layers", "hidden", "vocab", "vocab_part", "groups", "threads")),
        *((name, c_float) for name in ("embedding_scale", "logit_scale", "logit_softcap")),
        *((name, c_void_p) for name in ("embedding", "positions")),
        ("head", Matrix),
        ("head_bias", c_void_p),
        ("norm", Norm),
        ("ranks", Ranks),
    )


class Span(Structure):
    """Consecutive tokens of one sequence (``cache.h``)."""

    _fields_ = (("begin", c_int64), ("end", c_int64), ("start", c_int64), ("blocks", c_void_p))


class Batch(Structure):
    """The tokens of a step, and where they lie in the cache of one group of layers (``cache.h``)."""

    _fields_ = (
        *((name, c_int64) for name in ("num_tokens", "num_decodes", "num_spans")),
        *((name, c_void_p) for name in ("positions", "slot_blocks", "slot_offsets")),
        ("decode_lengths", c_void_p),
        ("decode_tables", c_void_p),
        ("decode_width", c_int64),
        ("spans", c_void_p),
    )


class Cache(Structure):
    """Keys and values of a group of layers (``cache.h``)."""

    _fields_ = (
        ("data", c_void_p),
        *((name, c_int64) for name in ("block_stride", "layer_stride")),
        ("block_size", c_int32),
    )


class Step(Structure):
    """What a forward pass is for (``cache.h``)."""

    _fields_ = (
        *((name, c_void_p) for name in ("token_ids", "logit_rows")),
        ("num_logits", c_int64),
        *((name, c_void_p) for name in ("batches", "caches", "state_rows")),
        ("num_states", c_int64),
        *((name, c_void_p) for name in ("states", "input_layers")),
        ("num_input_layers", c_int64),
        ("layer_inputs", c_void_p),
    )
