// Matrix products of packed activations and weights, with what follows them done on the way.
#pragma once

#include "scratch.h"
#include "team.h"
#include "tiles.h"

// Rows that pass by a stripe before the next one: as many as stay in the second-level cache.
constexpr int64_t kPassBytes = 1 << 20;
constexpr int kPassRows = 512;
// Depth tiles of a stripe that all rows pass by before the next ones: they stay in the first level.
constexpr int kDepthBlock = 8;
constexpr int64_t kAheadBytes = 3072;

// Compute `stripes` stripes of rows × weightᵀ; stripe_at(index) is where one lies, and finish(row, count,
// stripe, c) takes each piece, `count` rows from `row` on, as c [count][32].
//
// Weights are fetched ahead, at the pace at which they are used: by a whole stripe while many rows pass
// by this one; else by just as much as hides the memory's latency, which the processor's own fetching
// does for a page at a time only.
template <class T, class Finish, class StripeAt>
void linear_passes(Member& me, PackedRows<T> x, int rows, int stripes, const Finish& finish, const StripeAt& stripe_at) {
    if (rows == 0) return;
    const int depth = x.depth_tiles;
    const int64_t stride = int64_t(depth) * kTile<T>;
    const int most = int(std::clamp<int64_t>(kPassBytes / (depth * 64) / 32 * 32, 32, kPassRows));
    const int passes = int(ceil_div(rows, most)), pass = int(ceil_div(rows, passes * 32)) * 32;
    me.share(passes * stripes, [&](int task) {
        alignas(64) float c[kPassRows * 32];
        const int begin = task / stripes * pass, end = std::min(rows, begin + pass);
        const T* stripe = stripe_at(task % stripes);
        const int blocks = int(ceil_div(end - begin, 32)), block = blocks == 1 ? depth : kDepthBlock;
        Fetch fetch{reinterpret_cast<const char*>(stripe), int(ceil_div(32, blocks))};
        fetch.next += blocks == 1 ? kAheadBytes : 2 * stride * int64_t(sizeof(T));
        for (int k = 0; k < depth; k += block) {
            const int tiles = std::min(block, depth - k);
            for (int row = begin; row < end; row += 32) {
                const int count = std::min(32, end - row);
                float* out = c + (row - begin) * 32;
                multiply(x.at(row, k * kDepth<T>), stride, stripe + k * 2 * kTile<T>, tiles, count, k > 0, fetch, out);
                fetch.next += 64 * fetch.lines * tiles;
                if (k + tiles == depth) finish(row, count, task % stripes, out);
            }
        }
    });
}

template <class T, class Finish>
void linear(Member& me, PackedRows<T> x, int rows, const PackedWeight<T>& weight, Scratch&, const Finish& finish) {
    linear_passes(me, x, rows, weight.stripes(), finish, [&](int index) { return weight.stripe(index); });
}

// y[row, :] = (or +=) product + bias; y is [rows, outputs] floats. bias may be null. A Weight is any for
// which there is a linear().
template <bool kAdd, class T, class Weight>
void linear_to(Member& me, PackedRows<T> x, int rows, const Weight& weight, Scratch& scratch, const float* bias,
               float* y) {
    const int64_t outputs = weight.outputs;
    linear(me, x, rows, weight, scratch, [=](int row, int count, int stripe, const float* c) {
        const int n = stripe * 32, width = int(std::min<int64_t>(32, outputs - n));
        for (int r = 0; r < count; ++r) {
            float* out = y + (row + r) * outputs + n;
            int i = 0;
            for (; i + 16 <= width; i += 16) {
                F16 value = load(c + r * 32 + i);
                if (bias) value = value + load(bias + n + i);
                if (kAdd) value = value + load(out + i);
                store(out + i, value);
            }
            for (; i < width; ++i)
                out[i] = c[r * 32 + i] + (bias ? bias[n + i] : 0.0f) + (kAdd ? out[i] : 0.0f);
        }
    });
}

// y[row, :] = silu(gate) · up, packed for the next product. `weight` was packed in halves, gate above
// up, so that a stripe holds 16 outputs of each. bias [2 × inner] may be null.
template <class T, class Weight>
void gated_linear(Member& me, PackedRows<T> x, int rows, const Weight& weight, Scratch& scratch, const float* bias,
                  PackedRows<T> y) {
    const int inner = weight.outputs / 2;
    linear(me, x, rows, weight, scratch, [=](int row, int count, int stripe, const float* c) {
        const int n = stripe * 16;
        for (int r = 0; r < count; ++r) {
            F16 gate = load(c + r * 32), up = load(c + r * 32 + 16);
            if (bias) gate = gate + load(bias + n), up = up + load(bias + inner + n);
            y.put(row + r, n, silu<T>(gate) * up);
        }
    });
}
