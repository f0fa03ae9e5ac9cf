// Causal attention of consecutive tokens (a prompt or a piece of it): bound by arithmetic.
//
// Lanes run along queries, sixteen at a time ("a column" of queries; the query heads of a key head
// are queries like any other). Then scores, weights and results are transposed — [keys][16],
// [head_dim][16] — and softmax needs no sums across lanes. Keys and values are gathered from their
// blocks in runs of kKeys into a scratch that the two products read, in the form they like best:
// SpanProducts says how, for AMX and for vectors. Softmax is online (FlashAttention; Dao et al., 2022).
#pragma once

#include <cmath>
#include <cstdlib>
#include <vector>

#include "cache.h"
#include "layout.h"
#include "span_products.h"

constexpr int kSpanQueries = 64;  // tokens of a task: they share the gathered keys

// Grow-only memory of one thread, aligned to a cache line; contents do not survive growth.
class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    float* floats(size_t count) {
        if (count > size_) {
            std::free(data_);
            size_ = (count + 1023) / 1024 * 1024;
            data_ = static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float)));
        }
        return data_;
    }

   private:
    float* data_ = nullptr;
    size_t size_ = 0;
};

// Queries [token][heads × head_dim] with `stride` numbers from one token to the next, scaled already.
struct SpanQueries {
    const float* data;
    int64_t stride;
    int group;  // query heads per key head

    INLINE const float* at(int64_t token, int head, int index, int head_dim) const {
        return data + (token + index / group) * stride + int64_t(head * group + index % group) * head_dim;
    }
};

// Take the run of `count` keys from position `begin` on into one column's state.
// last: per lane the position of the last key it may see.
template <class T>
void attend_run(const SpanProducts<T>& products, const typename SpanProducts<T>::Number* packed_query,
                int begin, int count, F16 last, F16& highest, F16& total, float* result, int head_dim) {
    alignas(64) float scores[kKeys][16];
    alignas(64) typename SpanProducts<T>::Number weights[kKeys * 16];
    products.scores(packed_query, count, scores[0]);
    F16 best = highest;
    for (int t = 0; t < count; ++t) {
        const F16 score = load(scores[t]);
        const F16 seen = select_at_least(last, splat(float(begin + t)), score, splat(-INFINITY));
        store(scores[t], seen);
        best = max(best, seen);
    }
    const F16 correction = exp(highest - best);
    highest = best;
    F16 added = splat(0.0f);
    for (int t = 0; t < count; ++t) {
        const F16 weight = exp(load(scores[t]) - best);
        store(scores[t], weight);
        added = added + weight;
    }
    for (int t = count; t < kKeys; ++t) store(scores[t], splat(0.0f));
    total = fma(total, correction, added);
    for (int i = 0; i < head_dim; ++i) store(result + i * 16, load(result + i * 16) * correction);
    products.pack_weights(scores[0], count, weights);
    products.add_values(weights, count, result);
}

// Tokens [first, end) of `span` (rows of the step) with key head `head`.
template <class T>
void attend_span(LayerCache<T> cache, const Span& span, int64_t first, int64_t end, int head,
                 SpanQueries queries, PackedRows<T> out, Scratch& memory) {
    const int head_dim = cache.head_dim, group = queries.group;
    const int count = int(end - first) * group, columns = int(ceil_div(count, 16));
    const int64_t position = span.start + first - span.begin;  // of the first token
    const int64_t column_size = int64_t(head_dim) * 16;
    float* results = memory.floats(size_t(columns * column_size * 2 + SpanProducts<T>::floats(head_dim)));
    float* packed = results + columns * column_size;
    SpanProducts<T> products(packed + columns * column_size, head_dim);
    std::vector<F16> highest(columns, splat(-INFINITY)), total(columns, splat(0.0f));
    std::memset(results, 0, size_t(columns * column_size) * sizeof(float));

    for (int column = 0; column < columns; ++column) {
        const float* sources[16];
        for (int i = 0; i < 16; ++i)  // lanes beyond the end repeat the last query
            sources[i] = queries.at(first, head, std::min(column * 16 + i, count - 1), head_dim);
        products.pack_queries(sources, products.at(packed, column));
    }
    const int64_t keys = position + (end - first);
    for (int64_t begin = 0; begin < keys; begin += kKeys) {
        const int present = int(std::min<int64_t>(kKeys, keys - begin));
        products.gather(cache, span.blocks, begin, present, head);
        for (int column = 0; column < columns; ++column) {
            alignas(64) float last[16];
            for (int i = 0; i < 16; ++i)
                last[i] = float(position + std::min(column * 16 + i, count - 1) / group);
            const int seen = int(std::min<int64_t>(present, int64_t(last[15]) + 1 - begin));
            if (seen <= 0) continue;
            attend_run<T>(products, products.at(packed, column), int(begin), seen, load(last),
                          highest[column], total[column], results + column * column_size, head_dim);
        }
    }
    for (int column = 0; column < columns; ++column)
        for (int i = 0; i < head_dim; i += 16) {
            F16 tile[16];
            for (int j = 0; j < 16; ++j)
                tile[j] = load(results + column * column_size + (i + j) * 16) / total[column];
            transpose(tile);
            for (int lane = 0; lane < 16 && column * 16 + lane < count; ++lane) {
                const int index = column * 16 + lane;
                const int64_t place = int64_t(head * group + index % group) * head_dim + i;
                out.put(first + index / group, place, tile[lane]);
            }
        }
}
