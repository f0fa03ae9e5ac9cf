// What the Python side hands over of a model, field by field as in server/ops/cpu/structs.py. The meaning
// of each field is that of server/layers/spec.py; 0 or null stands for what is None there.
#pragma once

#include "activations.h"
#include "grouped.h"
#include "ranks.h"

// What of queries, or of keys, is normalized together: each head with one weight for all or with its own, or all.
enum NormScope : int32_t { kHead, kOwn, kJoint };

// How a layer attends.
struct AttentionSpec {
    int32_t heads, kv_heads, head_dim;
    int32_t window;        // tokens that a token sees at most, itself included
    int32_t norm_scope;
    float scale, softcap;  // of the scores
    const float* sinks;    // [heads]

    int64_t row_size() const { return int64_t(heads + 2 * kv_heads) * head_dim; }  // queries, keys, values
    int width() const { return heads * head_dim; }
    // First position that a token at `position` sees.
    int64_t first_seen(int64_t position) const {
        return window ? std::max<int64_t>(0, position - window + 1) : 0;
    }
};

enum NormKind : int32_t { kRms, kLayer };

// weight, bias: [size]; no weight: no norm in this place. Only kLayer may have a bias.
struct Norm {
    const float *weight, *bias;
    float eps;
    int32_t kind;
};

// Cosines and sines [positions, size / 2]; the first `size` numbers of a head turn.
struct Rotary {
    const float *cosine, *sine;
    int32_t size;
};

// The experts of a feed-forward part: `up` and `down` of each, of one form, packed like those of a layer. `shared` is
// the inner size of the expert that every token passes, 0 without one; it has no biases.
struct Experts {
    int32_t count, used, normalized, shared;
    const Matrix *up, *down;  // [count]
    Matrix router, shared_up, shared_down, shared_gate;
    const float *router_bias, *up_bias, *down_bias;
};

// One layer. Matrices are packed (qkv, out, down, and up without a gate in a row; a gate above up in
// halves), the rest is float32.
struct Layer {
    AttentionSpec attention;
    Rotary rotary;
    int32_t cache_group, cache_index;  // which cache, and which layer of it
    int32_t inner, activation, gated, parallel;
    float residual_scale;
    Norm attention_norm, attention_post_norm, query_norm, key_norm, feed_forward_norm, feed_forward_post_norm;
    Matrix qkv, out, up, down;
    const float *qkv_bias, *out_bias, *up_bias, *down_bias;
    Clamp clamp;
    Experts experts;  // in place of `up` and `down`, if any
};

// What is around the layers; embedding, positions (learned, added to the embedding) in T. Embedding and head
// are of `vocab_part` tokens each rank, those of the first one first; the last ones may be padding.
struct ModelSpec {
    int32_t layers, hidden, vocab, vocab_part, groups, threads;
    float embedding_scale, logit_scale, logit_softcap;
    const void *embedding, *positions;
    Matrix head;
    const float* head_bias;
    Norm norm;
    Ranks ranks;
};
