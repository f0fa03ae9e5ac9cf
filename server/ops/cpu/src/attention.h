// Attention of a layer, for the tokens of a step: norms and rotation, cache write, decodes and spans.
#pragma once

#include <vector>

#include "attend_decode.h"
#include "attend_span.h"
#include "rows.h"
#include "team.h"

// The tokens of a step in the layers of one cache group.
template <class T>
class AttentionStep {
   public:
    AttentionStep(const Batch& batch, const Cache& cache) : batch_(batch), cache_(cache) {
        for (int64_t s = 0; s < batch.num_spans; ++s)
            for (int64_t t = batch.spans[s].begin; t < batch.spans[s].end; t += kSpanQueries)
                pieces_.push_back({&batch.spans[s], t, std::min(t + kSpanQueries, batch.spans[s].end)});
    }

    // qkv: [tokens, (heads + 2 × kv_heads) × head_dim]; changed in place. Packs the result in `out`.
    void run(Member& me, const Layer& layer, float* qkv, PackedRows<T> out, Scratch& scratch) const {
        const AttentionSpec& spec = layer.attention;
        const LayerCache<T> cache = layer_cache(layer);
        const int kv_heads = spec.kv_heads, decodes = int(batch_.num_decodes);
        const int64_t stride = spec.row_size();
        me.share(int(batch_.num_tokens), [&](int token) { store_token(layer, cache, qkv + token * stride, token); });
        const int large = int(pieces_.size()) * kv_heads;
        me.share(large + decodes * kv_heads, [&](int task) {
            if (task < large) {
                const Piece& piece = pieces_[task / kv_heads];
                attend_span<T>(spec, cache, *piece.span, piece.begin, piece.end, task % kv_heads,
                               {qkv, stride, spec.heads / kv_heads}, out, scratch);
                return;
            }
            const int row = (task - large) / kv_heads, head = (task - large) % kv_heads;
            attend_decode<T>(spec, cache, batch_.decode_tables + row * batch_.decode_width,
                             int(batch_.decode_lengths[row]), head, qkv + row * stride, out, row,
                             scratch.floats(4 * size_t(spec.head_dim)));
        });
    }

   private:
    struct Piece {
        const Span* span;
        int64_t begin, end;
    };

    // Norm and rotate the heads of a token; store its key and value in the cache.
    void store_token(const Layer& layer, LayerCache<T> cache, float* row, int token) const {
        const AttentionSpec& spec = layer.attention;
        const int head_dim = spec.head_dim, heads = spec.heads, both = heads + spec.kv_heads;
        const float query_scale = kLog2E * spec.scale;  // softmax is in base 2
        if (spec.norm_scope == kJoint) {
            normalize_in_place(row, layer.query_norm, heads * head_dim);
            normalize_in_place(row + heads * head_dim, layer.key_norm, spec.kv_heads * head_dim);
        }
        for (int h = 0; h < both; ++h) {
            if (spec.norm_scope != kJoint) normalize_head(row + h * head_dim, layer, h);
            rotate(row + h * head_dim, layer.rotary, batch_.positions[token], head_dim,
                   h < heads ? query_scale : 1.0f);
        }
        const float* keys = row + heads * head_dim;
        const float* values = row + both * head_dim;
        T* slot = cache.key(batch_.slot_blocks[token], int(batch_.slot_offsets[token]), 0);
        for (int i = 0; i < spec.kv_heads * head_dim; i += 16) {
            store(slot + i, load(keys + i));
            store(slot + cache.value_offset() + i, load(values + i));
        }
    }

    static void normalize_head(float* x, const Layer& layer, int head) {
        const AttentionSpec& spec = layer.attention;
        const bool query = head < spec.heads;
        Norm norm = query ? layer.query_norm : layer.key_norm;
        if (norm.weight && spec.norm_scope == kOwn) {
            const int64_t place = int64_t(query ? head : head - spec.heads) * spec.head_dim;
            norm.weight += place;
            if (norm.bias) norm.bias += place;
        }
        normalize_in_place(x, norm, spec.head_dim);
    }

    LayerCache<T> layer_cache(const Layer& layer) const {
        return {static_cast<T*>(cache_.data) + layer.cache_index * cache_.layer_stride, cache_.block_stride,
                cache_.block_size, layer.attention.kv_heads, layer.attention.head_dim};
    }

    const Batch& batch_;
    const Cache& cache_;
    std::vector<Piece> pieces_;
};
