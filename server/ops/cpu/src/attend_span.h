// Causal attention of consecutive tokens (a prompt or a piece of it): bound by arithmetic.
//
// Lanes run along queries, sixteen at a time ("a column" of queries; the query heads of a key head
// are queries like any other). Then scores, weights and results are transposed — [keys][16],
// [head_dim][16] — and softmax needs no sums across lanes. Keys and values are gathered from their
// blocks in runs of kKeys into a scratch that the two products read, in the form they like best:
// SpanProducts says how, for AMX and for vectors. Softmax is online (FlashAttention; Dao et al., 2022).
//
// A query's result does not depend on those beside it: keys that it does not see have weight zero. With
// vectors it is, to the bit, that of attend_decode.h: runs are as long, and every sum has its order.
#pragma once

#include <cmath>
#include <vector>

#include "cache.h"
#include "layout.h"
#include "scratch.h"
#include "span_products.h"
#include "spec.h"

constexpr int kSpanQueries = 64;  // tokens of a task: they share the gathered keys
// Where the highest score begins: less than any, and still a number when it is taken from itself, as
// happens while a query sees none of the keys of a run.
constexpr float kLowest = -1e30f;

// Queries [token][heads × head_dim] with `stride` numbers from one token to the next, scaled for softmax in base 2.
struct SpanQueries {
    const float* data;
    int64_t stride;
    int group;  // query heads per key head

    INLINE const float* at(int64_t token, int head, int index, int head_dim) const {
        return data + (token + index / group) * stride + int64_t(head * group + index % group) * head_dim;
    }
};

// Which keys the sixteen queries of a column see, by position.
struct Sight {
    F16 first, last;          // of each lane
    int latest_first, first_last;  // the greatest `first` and the least `last`: between them all lanes see all
};

// Take the run of `count` keys from position `begin` on into one column's state.
template <class T>
void attend_run(const SpanProducts<T>& products, const typename SpanProducts<T>::Number* packed_query,
                int begin, int count, const Sight& sight, float cap, F16& highest, F16& total, float* result,
                int head_dim) {
    alignas(64) float scores[kKeys][16];
    alignas(64) typename SpanProducts<T>::Number weights[kKeys * 16];
    products.scores(packed_query, count, scores[0]);
    if (cap)
        for (int t = 0; t < count; ++t) store(scores[t], softcap(load(scores[t]), cap));
    if (begin + count - 1 > sight.first_last)
        for (int t = 0; t < count; ++t)
            store(scores[t],
                  select_at_least(sight.last, splat(float(begin + t)), load(scores[t]), splat(-INFINITY)));
    if (begin < sight.latest_first)
        for (int t = 0; t < count; ++t)
            store(scores[t],
                  select_at_least(splat(float(begin + t)), sight.first, load(scores[t]), splat(-INFINITY)));
    const int padded = int(ceil_div(count, 32)) * 32;
    for (int t = count; t < padded; ++t) store(scores[t], splat(-INFINITY));
    F16 best[4] = {highest, highest, highest, highest};  // four, so that none waits for the one before
    for (int t = 0; t < padded; t += 4)
        for (int i = 0; i < 4; ++i) best[i] = max(best[i], load(scores[t + i]));
    const F16 now = max(max(best[0], best[1]), max(best[2], best[3]));
    const F16 correction = fading(highest, now);
    F16 added[16];  // over the keys with equal remainders
    for (int i = 0; i < 16; ++i) added[i] = splat(0.0f);
    for (int t = 0; t < padded; t += 16)
        for (int i = 0; i < 16; i += 2) {
            const F16 low = exp2<T>(load(scores[t + i]) - now), high = exp2<T>(load(scores[t + i + 1]) - now);
            added[i] = added[i] + low;
            added[i + 1] = added[i + 1] + high;
            products.store_weights(weights, t + i, low, high);
        }
    highest = now;
    total = total * correction + sum_of_pairs<1>([&](int i) { return added[i] + added[i + 8]; }, 0);
    for (int i = 0; i < head_dim; ++i) store(result + i * 16, load(result + i * 16) * correction);
    products.add_values(weights, count, result);
}

// What the queries of `column` see: those of tokens from `position` on, `group` of them at each, `count` in all.
INLINE Sight sight_of(const AttentionSpec& spec, int column, int count, int group, int64_t position) {
    alignas(64) float first[16], last[16];
    for (int i = 0; i < 16; ++i) {  // lanes beyond the end repeat the last query
        const int64_t at = position + std::min(column * 16 + i, count - 1) / group;
        first[i] = float(spec.first_seen(at));
        last[i] = float(at);
    }
    return {load(first), load(last), int(first[15]), int(last[0])};
}

// Tokens [first, end) of `span` (rows of the step) with key head `head`.
template <class T>
void attend_span(const AttentionSpec& spec, LayerCache<T> cache, const Span& span, int64_t first, int64_t end,
                 int head, SpanQueries queries, PackedRows<T> out, Scratch& memory) {
    const int head_dim = cache.head_dim, group = queries.group;
    const int count = int(end - first) * group, columns = int(ceil_div(count, 16));
    const int64_t position = span.start + first - span.begin;  // of the first token
    const int64_t column_size = int64_t(head_dim) * 16;
    float* results = memory.floats(size_t(columns * column_size * 2 + SpanProducts<T>::floats(head_dim)));
    float* packed = results + columns * column_size;
    SpanProducts<T> products(packed + columns * column_size, head_dim);
    std::vector<F16> highest(columns, splat(kLowest)), total(columns, splat(0.0f));
    std::memset(results, 0, size_t(columns * column_size) * sizeof(float));

    for (int column = 0; column < columns; ++column) {
        const float* sources[16];
        alignas(64) float sinks[16];
        for (int i = 0; i < 16; ++i) {
            const int index = std::min(column * 16 + i, count - 1);
            sources[i] = queries.at(first, head, index, head_dim);
            if (spec.sinks) sinks[i] = spec.sinks[head * group + index % group] * kLog2E;
        }
        products.pack_queries(sources, products.at(packed, column));
        // a sink is the score of a token without a value
        if (spec.sinks) highest[column] = load(sinks), total[column] = splat(1.0f);
    }
    const int64_t keys = position + (end - first);
    const int64_t seen_first = spec.first_seen(position);
    for (int64_t begin = seen_first / kKeys * kKeys; begin < keys; begin += kKeys) {
        const int present = int(std::min<int64_t>(kKeys, keys - begin));
        products.gather(TokenWalk<T>(cache, span.blocks, begin, seen_first, head), cache.value_offset(), present);
        for (int column = 0; column < columns; ++column) {
            const Sight sight = sight_of(spec, column, count, group, position);
            const int64_t last = position + std::min(column * 16 + 15, count - 1) / group;
            const int seen = int(std::min<int64_t>(present, last + 1 - begin));
            if (seen <= 0 || begin + seen <= spec.first_seen(position + column * 16 / group)) continue;
            attend_run<T>(products, products.at(packed, column), int(begin), seen, sight,
                          spec.softcap * kLog2E, highest[column], total[column], results + column * column_size,
                          head_dim);
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
