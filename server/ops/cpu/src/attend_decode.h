// Attention of one new token to all tokens of its sequence: bound by reading the cache.
//
// Lanes run along the head dimension. The query heads that share a key head go together, up to four
// at a time, so that a key is read once for all of them. Softmax is online (Milakov and Gimelshein,
// 2018), in runs of kRun tokens. A head's keys lie apart from each other, which the processor's own
// prefetching does not see: values are fetched while keys are used, the next keys while values are, behind
// the last ones those of the next head. They go to the second level: so far apart they share few sets of the first,
// and would push each other out of it.
//
// All that is rounded is rounded as in attend_span.h: the order of every sum is the same in both.
#pragma once

#include <cmath>
#include <utility>

#include "cache.h"
#include "layout.h"
#include "spec.h"

constexpr int kRun = 64;  // counted from the first token, as in attend_span.h

// G query heads from `first` on (scaled for softmax in base 2) of key head `head` over `length` tokens, of which
// they see those that the layer's window lets them see; the result is their part of row `row` of `out`.
// query: [G, head_dim]; sums: scratch [G, head_dim].
template <int G, class T>
void attend_group(const AttentionSpec& spec, LayerCache<T> cache, const int64_t* blocks, int length, int head,
                  int first, const float* query, PackedRows<T> out, int64_t row, float* sums) {
    const int head_dim = cache.head_dim, start = int(spec.first_seen(length - 1));
    const int first_run = start / kRun * kRun;
    const T* places[2][kRun];
    const T **keys = places[0], **next = places[1];  // of this run and of the next one
    alignas(64) float weights[G][kRun];
    float highest[G], total[G];
    for (int g = 0; g < G; ++g) {  // a sink is the score of a token without a value
        highest[g] = spec.sinks ? spec.sinks[first + g] * kLog2E : -INFINITY;
        total[g] = spec.sinks ? 1.0f : 0.0f;
    }
    for (int i = 0; i < G * head_dim; i += 16) store(sums + i, splat(0.0f));
    TokenWalk<T> walk(cache, blocks, first_run, start, head);
    const auto look_up = [&](const T** run, int begin) {
        const int count = std::min(kRun, length - begin);
        for (int t = 0; t < count; ++t) run[t] = walk.next();
        return std::max(count, 0);
    };
    const auto fetch = [&](const T* place) {
        for (int i = 0; i < head_dim; i += 64 / int(sizeof(T))) prefetch_far(place + i);
    };
    int coming = look_up(keys, first_run);
    if (head == 0)
        for (int t = 0; t < coming; ++t) fetch(keys[t]);
    for (int begin = first_run; begin < length; begin += kRun) {
        const int count = coming;
        coming = look_up(next, begin + kRun);
        int fetched = coming;
        if (!coming && head + 1 < spec.kv_heads) {
            walk = TokenWalk<T>(cache, blocks, first_run, start, head + 1);
            fetched = look_up(next, first_run);
        }
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
        F16 correction[G];
        for (int g = 0; g < G; ++g) {
            if (spec.softcap)
                for (int t = 0; t < count; t += 16)
                    store(weights[g] + t, softcap(load(weights[g] + t), spec.softcap * kLog2E));
            for (int t = 0; t < start - begin; ++t) weights[g][t] = -INFINITY;  // before the window
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
            correction[g] = fading(splat(highest[g]), splat(now));
            total[g] = first_lane(splat(total[g]) * correction[g]) + sum(added);
            highest[g] = now;
        }
        const auto accumulate = [&]<int N>(int i) {  // N sixteens of the head from dimension i on
            F16 acc[G][N];
            for (int g = 0; g < G; ++g)
                for (int n = 0; n < N; ++n)
                    acc[g][n] = load(sums + g * head_dim + i + n * 16) * correction[g];
            for (int t = 0; t < count; ++t) {
                const T* value = keys[t] + cache.value_offset() + i;
                if (i == 0 && t < fetched) fetch(next[t]);
                for (int n = 0; n < N; ++n) {
                    const F16 v = load(value + n * 16);
                    for (int g = 0; g < G; ++g) acc[g][n] = fma(splat(weights[g][t]), v, acc[g][n]);
                }
            }
            for (int g = 0; g < G; ++g)
                for (int n = 0; n < N; ++n) store(sums + g * head_dim + i + n * 16, acc[g][n]);
        };
        int i = 0;
        for (; i + 64 <= head_dim; i += 64) accumulate.template operator()<4>(i);
        for (; i < head_dim; i += 16) accumulate.template operator()<1>(i);
        for (int t = count; t < fetched; ++t) fetch(next[t]);
        std::swap(keys, next);
    }
    for (int g = 0; g < G; ++g)
        for (int i = 0; i < head_dim; i += 16)
            out.put(row, int64_t(first + g) * head_dim + i, load(sums + g * head_dim + i) / splat(total[g]));
}

// The same for all query heads of a key head. query: [heads, head_dim]; scratch: [4, head_dim].
template <class T>
void attend_decode(const AttentionSpec& spec, LayerCache<T> cache, const int64_t* blocks, int length, int head,
                   const float* query, PackedRows<T> out, int64_t row, float* scratch) {
    const int group = spec.heads / spec.kv_heads, end = (head + 1) * group;
    for (int first = head * group; first < end;) {
        const float* part = query + int64_t(first) * spec.head_dim;
        const auto run = [&]<int G>() {
            attend_group<G>(spec, cache, blocks, length, head, first, part, out, row, scratch);
            first += G;
        };
        switch (std::min(end - first, 4)) {
            case 1: run.template operator()<1>(); break;
            case 2: run.template operator()<2>(); break;
            case 3: run.template operator()<3>(); break;
            default: run.template operator()<4>();
        }
    }
}
