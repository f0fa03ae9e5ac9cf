// Causal attention of consecutive tokens (a prompt or a piece of it): bound by arithmetic.
//
// Lanes run along queries, sixteen at a time ("a column" of queries; the query heads of a key head
// are queries like any other). Then scores, weights and results are transposed — [keys][16],
// [head_dim][16] — and softmax needs no sums across lanes. Keys and values are gathered from their
// blocks in runs of kKeys into a scratch that the two products read, in the form they like best:
// SpanProducts says how, for AMX and for vectors. Softmax is online (FlashAttention; Dao et al., 2022).
#pragma once

#include <cmath>
#include <vector>

#include "cache.h"
#include "layout.h"
#include "scratch.h"
#include "span_products.h"

constexpr int kSpanQueries = 64;  // tokens of a task: they share the gathered keys

// Queries [token][heads × head_dim] with `stride` numbers from one token to the next, scaled for softmax in base 2.
struct SpanQueries {
    const float* data;
    int64_t stride;
    int group;  // query heads per key head

    INLINE const float* at(int64_t token, int head, int index, int head_dim) const {
        return data + (token + index / group) * stride + int64_t(head * group + index % group) * head_dim;
    }
};

// Take the run of `count` keys from position `begin` on into one column's state.
// last: per lane the position of the last key it may see; first_limit: the least of them.
template <class T>
void attend_run(const SpanProducts<T>& products, const typename SpanProducts<T>::Number* packed_query,
                int begin, int count, F16 last, int first_limit, F16& highest, F16& total, float* result,
                int head_dim) {
    alignas(64) float scores[kKeys][16];
    alignas(64) typename SpanProducts<T>::Number weights[kKeys * 16];
    products.scores(packed_query, count, scores[0]);
    if (begin + count - 1 > first_limit)
        for (int t = 0; t < count; ++t)
            store(scores[t], select_at_least(last, splat(float(begin + t)), load(scores[t]), splat(-INFINITY)));
    const int padded = int(ceil_div(count, 32)) * 32;
    for (int t = count; t < padded; ++t) store(scores[t], splat(-INFINITY));
    F16 best[4] = {highest, highest, highest, highest};  // four, so that none waits for the one before
    for (int t = 0; t < padded; t += 4)
        for (int i = 0; i < 4; ++i) best[i] = max(best[i], load(scores[t + i]));
    const F16 now = max(max(best[0], best[1]), max(best[2], best[3]));
    const F16 correction = exp2<float>(highest - now);
    F16 even = total * correction, odd = splat(0.0f);
    for (int t = 0; t < padded; t += 2) {
        const F16 low = exp2<T>(load(scores[t]) - now), high = exp2<T>(load(scores[t + 1]) - now);
        even = even + low;
        odd = odd + high;
        products.store_weights(weights, t, low, high);
    }
    highest = now;
    total = even + odd;
    for (int i = 0; i < head_dim; ++i) store(result + i * 16, load(result + i * 16) * correction);
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
                          int(last[0]), highest[column], total[column], results + column * column_size, head_dim);
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
