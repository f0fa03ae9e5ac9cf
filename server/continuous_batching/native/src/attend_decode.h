// Attention of one new token to all tokens of its sequence: bound by reading the cache.
//
// Lanes run along the head dimension. The query heads that share a key head go together, up to four
// at a time, so that a key is read once for all of them. Softmax is online (Milakov and Gimelshein,
// 2018), in runs of kRun tokens. A head's keys lie apart from each other, which the processor's own
// prefetching does not see: values are fetched while keys are used, the next keys while values are.
#pragma once

#include <cmath>
#include <utility>

#include "cache.h"
#include "layout.h"

constexpr int kRun = 64;

// Query heads [G, head_dim] (scaled for softmax in base 2) of key head `head` over `length` tokens; the result is
// the sixteens-columns from `column` on of row `row` of `out`. sums: scratch [G, head_dim].
template <int G, class T>
void attend_group(LayerCache<T> cache, const int64_t* blocks, int length, int head, const float* query,
                  PackedRows<T> out, int64_t row, int64_t column, float* sums) {
    const int head_dim = cache.head_dim;
    const T* places[2][kRun];
    const T **keys = places[0], **next = places[1];  // of this run and of the next one
    alignas(64) float weights[G][kRun];
    float highest[G], total[G];
    for (int g = 0; g < G; ++g) highest[g] = -INFINITY, total[g] = 0.0f;
    for (int i = 0; i < G * head_dim; i += 16) store(sums + i, splat(0.0f));
    TokenWalk<T> walk(cache, blocks, 0, head);
    const auto look_up = [&](const T** run, int begin) {
        const int count = std::min(kRun, length - begin);
        for (int t = 0; t < count; ++t) run[t] = walk.next();
        return std::max(count, 0);
    };
    const auto fetch = [&](const T* place) {
        for (int i = 0; i < head_dim; i += 64 / int(sizeof(T))) prefetch(place + i);
    };
    int coming = look_up(keys, 0);
    for (int begin = 0; begin < length; begin += kRun) {
        const int count = coming;
        coming = look_up(next, begin + kRun);
        for (int t = 0; t < count; ++t) {
            const T* key = keys[t];
            fetch(key + cache.value_offset());
            F16 dots[G];
            for (int g = 0; g < G; ++g) dots[g] = splat(0.0f);
            for (int i = 0; i < head_dim; i += 16) {
                const F16 k = load(key + i);
                for (int g = 0; g < G; ++g) dots[g] = fma(load(query + g * head_dim + i), k, dots[g]);
            }
            for (int g = 0; g < G; ++g) weights[g][t] = sum(dots[g]);
        }
        const int padded = int(ceil_div(count, 16)) * 16;
        float correction[G];
        for (int g = 0; g < G; ++g) {
            for (int t = count; t < padded; ++t) weights[g][t] = -INFINITY;
            F16 best = splat(highest[g]);
            for (int t = 0; t < padded; t += 16) best = max(best, load(weights[g] + t));
            const float now = maximum(best);
            F16 added = splat(0.0f);
            for (int t = 0; t < padded; t += 16) {
                const F16 w = exp2<T>(load(weights[g] + t) - splat(now));
                store(weights[g] + t, w);
                added = added + w;
            }
            correction[g] = std::exp2(highest[g] - now);
            total[g] = total[g] * correction[g] + sum(added);
            highest[g] = now;
        }
        const auto accumulate = [&]<int N>(int i) {  // N sixteens of the head from dimension i on
            F16 acc[G][N];
            for (int g = 0; g < G; ++g)
                for (int n = 0; n < N; ++n)
                    acc[g][n] = load(sums + g * head_dim + i + n * 16) * splat(correction[g]);
            for (int t = 0; t < count; ++t) {
                const T* value = keys[t] + cache.value_offset() + i;
                for (int n = 0; n < N; ++n) {
                    const F16 v = load(value + n * 16);
                    for (int g = 0; g < G; ++g) acc[g][n] = fma(splat(weights[g][t]), v, acc[g][n]);
                }
            }
            for (int g = 0; g < G; ++g)
                for (int n = 0; n < N; ++n) store(sums + g * head_dim + i + n * 16, acc[g][n]);
        };
        for (int t = 0; t < coming; ++t) fetch(next[t]);
        int i = 0;
        for (; i + 64 <= head_dim; i += 64) accumulate.template operator()<4>(i);
        for (; i < head_dim; i += 16) accumulate.template operator()<1>(i);
        std::swap(keys, next);
    }
    for (int g = 0; g < G; ++g)
        for (int i = 0; i < head_dim; i += 16)
            out.put(row, column + g * head_dim + i, load(sums + g * head_dim + i) * splat(1.0f / total[g]));
}

// The same for any number of query heads. scratch: [4, head_dim].
template <class T>
void attend_decode(LayerCache<T> cache, const int64_t* blocks, int length, int head, int group,
                   const float* query, PackedRows<T> out, int64_t row, float* scratch) {
    const int head_dim = cache.head_dim;
    for (int g = 0; g < group;) {
        const int64_t column = int64_t(head * group + g) * head_dim;
        const float* part = query + g * head_dim;
        const auto run = [&]<int G>() {
            attend_group<G>(cache, blocks, length, head, part, out, row, column, scratch);
            g += G;
        };
        switch (std::min(group - g, 4)) {
            case 1: run.template operator()<1>(); break;
            case 2: run.template operator()<2>(); break;
            case 3: run.template operator()<3>(); break;
            default: run.template operator()<4>();
        }
    }
}
