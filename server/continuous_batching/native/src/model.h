// A forward pass of a Llama-like decoder: all layers in one parallel region.
//
// The residual stream and everything that is summed is float32; what enters a product is T.
#pragma once

#include <vector>

#include "attend_decode.h"
#include "attend_span.h"
#include "int4.h"
#include "rows.h"

// Sizes of a model, as the Python side hands them over.
struct Shape {
    int32_t layers, hidden, inner, heads, kv_heads, head_dim, vocab, block_size, threads;
    float norm_eps;
};

// Weights of one layer: matrices packed (qkv, out, down in a row; gate_up in halves), the rest float32.
// Biases and head norms may be null.
struct LayerWeights {
    const float *attention_norm, *feed_forward_norm, *query_norm, *key_norm;
    Matrix qkv, out, gate_up, down;
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
};

// Weights around the layers, in T; cosine and sine are float32 [positions, head_dim / 2].
struct OuterWeights {
    const void *embedding, *head;
    const float *norm, *cosine, *sine;
};

template <class T>
PackedWeight<T> packed_weight(const void* data, int outputs, int inputs) {
    return {static_cast<const T*>(data), outputs, int(ceil_div(inputs, kDepth<T>))};
}

// Call body with the weight that a matrix is.
template <class T, class Body>
void with_weight(const Matrix& matrix, int outputs, int inputs, const Body& body) {
    if (matrix.group)
        body(int4_weight(matrix, outputs, inputs));
    else
        body(packed_weight<T>(matrix.data, outputs, inputs));
}

// Queries, rotated keys and values of the step's tokens, and where they go: attention of one layer.
template <class T>
class AttentionStep {
   public:
    AttentionStep(const Shape& shape, const Batch& batch, const OuterWeights& outer)
        : shape_(shape), batch_(batch), outer_(outer), group_(shape.heads / shape.kv_heads) {
        for (int64_t s = 0; s < batch.num_spans; ++s)
            for (int64_t t = batch.spans[s].begin; t < batch.spans[s].end; t += kSpanQueries)
                pieces_.push_back({&batch.spans[s], t, std::min(t + kSpanQueries, batch.spans[s].end)});
    }

    // qkv: [tokens, (heads + 2 × kv_heads) × head_dim]; changed in place. Packs the result in `out`.
    void run(Member& me, LayerCache<T> cache, const LayerWeights& weights, float* qkv, PackedRows<T> out,
             Scratch& scratch) const {
        const int kv_heads = shape_.kv_heads, decodes = int(batch_.num_decodes);
        const int64_t stride = row_size();
        me.share(int(batch_.num_tokens), [&](int token) { store_token(cache, weights, qkv, token); });
        const int large = int(pieces_.size()) * kv_heads;
        me.share(large + decodes * kv_heads, [&](int task) {
            if (task < large) {
                const Piece& piece = pieces_[task / kv_heads];
                attend_span<T>(cache, *piece.span, piece.begin, piece.end, task % kv_heads,
                               {qkv, stride, group_}, out, scratch);
                return;
            }
            const int row = (task - large) / kv_heads, head = (task - large) % kv_heads;
            attend_decode<T>(cache, batch_.decode_tables + row * batch_.decode_width,
                             int(batch_.decode_lengths[row]), head, group_,
                             qkv + row * stride + int64_t(head) * group_ * shape_.head_dim, out, row,
                             scratch.floats(4 * size_t(shape_.head_dim)));
        });
    }

    int64_t row_size() const { return int64_t(shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim; }

   private:
    struct Piece {
        const Span* span;
        int64_t begin, end;
    };

    // Norm and rotate the heads of a token; store its key and value in the cache.
    void store_token(LayerCache<T> cache, const LayerWeights& weights, float* qkv, int token) const {
        const int head_dim = shape_.head_dim, heads = shape_.heads, both = heads + shape_.kv_heads;
        const int64_t place = batch_.positions[token] * (head_dim / 2);
        const float query_scale = kLog2E / std::sqrt(float(head_dim));  // softmax is in base 2
        float* row = qkv + token * row_size();
        for (int h = 0; h < both; ++h) {
            const float* weight = h < heads ? weights.query_norm : weights.key_norm;
            if (weight) norm_head(row + h * head_dim, weight, head_dim, shape_.norm_eps);
            rotate(row + h * head_dim, outer_.cosine + place, outer_.sine + place, head_dim,
                   h < heads ? query_scale : 1.0f);
        }
        const float* keys = row + heads * head_dim;
        const float* values = row + both * head_dim;
        T* slot = cache.key(batch_.slot_blocks[token], int(batch_.slot_offsets[token]), 0);
        for (int i = 0; i < shape_.kv_heads * head_dim; i += 16) {
            store(slot + i, load(keys + i));
            store(slot + cache.value_offset() + i, load(values + i));
        }
    }

    const Shape& shape_;
    const Batch& batch_;
    const OuterWeights& outer_;
    const int group_;
    std::vector<Piece> pieces_;
};

// A model, with the buffers of its passes; one pass at a time.
template <class T>
class Model {
   public:
    Model(const Shape& shape, const LayerWeights* layers, const OuterWeights& outer)
        : shape_(shape), layers_(layers, layers + shape.layers), outer_(outer), team_(shape.threads),
          scratch_(shape.threads) {
        for (const LayerWeights& w : layers_)
            reorders_ |= w.qkv.order || w.out.order || w.gate_up.order || w.down.order;
    }

    // cache: [blocks, layers, 2, block_size, kv_heads, head_dim]; logits: [num_logits, vocab].
    void forward(const Batch& batch, T* cache, float* logits) {
        const AttentionStep<T> attention(shape_, batch, outer_);
        arrange(batch.num_tokens, attention.row_size());
#pragma omp parallel num_threads(team_.size)
        {
            [[maybe_unused]] const TileRegisters tiles;
            const int rank = omp_get_thread_num();
            Member me(team_, rank);
            me.share(int(batch.num_tokens), [&](int t) {
                embed(static_cast<const T*>(outer_.embedding), batch.token_ids[t], shape_.hidden,
                      x_ + int64_t(t) * shape_.hidden);
            });
            for (int layer = 0; layer < shape_.layers; ++layer)
                run_layer(me, layers_[layer], attention, layer_cache(cache, layer), int(batch.num_tokens),
                          scratch_[rank]);
            me.share(int(batch.num_logits), [&](int row) {
                norm(x_ + batch.logit_rows[row] * shape_.hidden, outer_.norm, shape_.hidden, shape_.norm_eps,
                     normed_, row);
            });
            linear_to<false>(me, normed_, int(batch.num_logits),
                             packed_weight<T>(outer_.head, shape_.vocab, shape_.hidden), scratch_[rank], nullptr,
                             logits);
        }
    }

   private:
    void run_layer(Member& me, const LayerWeights& w, const AttentionStep<T>& attention, LayerCache<T> cache,
                   int rows, Scratch& scratch) {
        const int hidden = shape_.hidden, inner = shape_.inner, width = shape_.heads * shape_.head_dim;
        const auto norm_all = [&](const float* weight) {
            me.share(rows, [&](int row) {
                norm(x_ + int64_t(row) * hidden, weight, hidden, shape_.norm_eps, normed_, row);
            });
        };
        // body(input, weight): the product of `matrix` and its input, in the order that it has inputs in
        const auto product = [&](const Matrix& matrix, int outputs, int inputs, PackedRows<T> x, const auto& body) {
            const PackedRows<T> input = in_order(me, matrix, x, inputs, rows);
            with_weight<T>(matrix, outputs, inputs, [&](const auto& weight) { body(input, weight); });
        };
        norm_all(w.attention_norm);
        product(w.qkv, int(attention.row_size()), hidden, normed_, [&](PackedRows<T> input, const auto& weight) {
            linear_to<false>(me, input, rows, weight, scratch, w.qkv_bias, qkv_);
        });
        attention.run(me, cache, w, qkv_, attended_, scratch);
        product(w.out, hidden, width, attended_, [&](PackedRows<T> input, const auto& weight) {
            linear_to<true>(me, input, rows, weight, scratch, w.out_bias, x_);
        });
        norm_all(w.feed_forward_norm);
        product(w.gate_up, 2 * inner, hidden, normed_, [&](PackedRows<T> input, const auto& weight) {
            gated_linear(me, input, rows, weight, scratch, w.gate_up_bias, inner_);
        });
        product(w.down, hidden, inner, inner_, [&](PackedRows<T> input, const auto& weight) {
            linear_to<true>(me, input, rows, weight, scratch, w.down_bias, x_);
        });
    }

    PackedRows<T> in_order(Member& me, const Matrix& matrix, PackedRows<T> x, int inputs, int rows) {
        if (!matrix.order) return x;
        const PackedRows<T> ordered{ordered_.data, x.depth_tiles};
        me.share(rows, [&](int row) {
            for (int i = 0; i < inputs; ++i) *ordered.at(row, i) = *x.at(row, matrix.order[i]);
        });
        return ordered;
    }

    LayerCache<T> layer_cache(T* cache, int layer) const {
        const int64_t layer_size = 2 * int64_t(shape_.block_size) * shape_.kv_heads * shape_.head_dim;
        return {cache + layer * layer_size, layer_size * shape_.layers, shape_.block_size, shape_.kv_heads,
                shape_.head_dim};
    }

    // Point the buffers into memory for `rows` tokens. Rows are padded to whole blocks of 32, which
    // the products read and nobody looks at.
    void arrange(int64_t rows, int64_t qkv_size) {
        const int64_t padded = ceil_div(rows, 32) * 32;
        const int64_t attended = int64_t(shape_.heads) * shape_.head_dim;
        const int64_t ordered = reorders_ ? std::max({int64_t(shape_.hidden), attended, int64_t(shape_.inner)}) : 0;
        const int64_t widths[] = {shape_.hidden, qkv_size, shape_.hidden, attended, shape_.inner, ordered};
        int64_t total = 0;
        for (int64_t width : widths) total += padded * ceil_div(width, 32) * 32;
        float* at = buffers_.floats(size_t(total));
        const auto take = [&](int64_t width) {
            float* taken = at;
            at += padded * ceil_div(width, 32) * 32;
            return taken;
        };
        const auto rows_of = [&](int64_t width) {
            return PackedRows<T>{reinterpret_cast<T*>(take(width)), int(ceil_div(width, kDepth<T>))};
        };
        x_ = take(widths[0]);
        qkv_ = take(widths[1]);
        normed_ = rows_of(widths[2]);
        attended_ = rows_of(widths[3]);
        inner_ = rows_of(widths[4]);
        ordered_ = rows_of(widths[5]);
    }

    const Shape shape_;
    const std::vector<LayerWeights> layers_;
    const OuterWeights outer_;
    Team team_;
    std::vector<Scratch> scratch_;
    bool reorders_ = false;
    Scratch buffers_;
    float *x_ = nullptr, *qkv_ = nullptr;
    PackedRows<T> normed_{}, attended_{}, inner_{}, ordered_{};
};
