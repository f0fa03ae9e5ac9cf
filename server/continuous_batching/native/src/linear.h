// Matrix products of packed activations and weights, with what follows them done on the way.
#pragma once

#include "team.h"
#include "tiles.h"

// Rows that pass by a stripe before the next one: as many as stay in the second-level cache.
constexpr int64_t kPassBytes = 1 << 20;

// Compute all stripes of rows × weightᵀ; finish(row, count, stripe, c) takes each piece, `count` rows
// from `row` on, as c [count][32].
template <class T, class Finish>
void linear(Member& me, PackedRows<T> x, int rows, PackedWeight<T> weight, const Finish& finish) {
    const int depth = weight.depth_tiles;
    const int64_t row_bytes = int64_t(depth) * 64;
    const int pass = int(std::max<int64_t>(kPassBytes / row_bytes / 32 * 32, 32));
    for (int begin = 0; begin < rows; begin += pass) {
        const int end = std::min(rows, begin + pass);
        me.share(weight.stripes(), [&](int index) {
            alignas(64) float c[32 * 32];
            const T* stripe = weight.stripe(index);
            for (int row = begin; row < end; row += 32) {
                const int count = std::min(32, end - row);
                multiply(x.at(row, 0), stripe, depth, count, c);
                finish(row, count, index, c);
            }
        });
    }
}

// y[row, :] = (or +=) product + bias; y is [rows, outputs] floats. bias may be null.
template <bool kAdd, class T>
void linear_to(Member& me, PackedRows<T> x, int rows, PackedWeight<T> weight, const float* bias, float* y) {
    const int64_t outputs = weight.outputs;
    linear(me, x, rows, weight, [=](int row, int count, int stripe, const float* c) {
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
template <class T>
void gated_linear(Member& me, PackedRows<T> x, int rows, PackedWeight<T> weight, const float* bias,
                  PackedRows<T> y) {
    const int inner = weight.outputs / 2;
    linear(me, x, rows, weight, [=](int row, int count, int stripe, const float* c) {
        const int n = stripe * 16;
        for (int r = 0; r < count; ++r) {
            F16 gate = load(c + r * 32), up = load(c + r * 32 + 16);
            if (bias) gate = gate + load(bias + n), up = up + load(bias + inner + n);
            y.put(row + r, n, silu<T>(gate) * up);
        }
    });
}
