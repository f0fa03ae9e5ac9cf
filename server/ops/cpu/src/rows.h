// What happens to single tokens between the products: embedding, norms, rotation.
#pragma once

#include <cmath>

#include "layout.h"
#include "spec.h"

// x = scale · (one row of the embedding)
template <class T>
void embed(const T* embedding, int hidden, float scale, float* x) {
    for (int i = 0; i < hidden; i += 16) store(x + i, load(embedding + i) * splat(scale));
}

// x += row
template <class T>
void add_row(const T* row, int hidden, float* x) {
    for (int i = 0; i < hidden; i += 16) store(x + i, load(x + i) + load(row + i));
}

// Call put(i, lanes) with each sixteen of the normalized x; of x itself where there is no norm.
template <class Put>
INLINE void normalize(const float* x, const Norm& norm, int size, const Put& put) {
    if (!norm.weight) {
        for (int i = 0; i < size; i += 16) put(i, load(x + i));
        return;
    }
    F16 sums = splat(0.0f), squares = splat(0.0f);
    if (norm.kind == kRms) {
        for (int i = 0; i < size; i += 16) squares = fma(load(x + i), load(x + i), squares);
        const F16 scale = splat(1.0f / std::sqrt(sum(squares) / float(size) + norm.eps));
        for (int i = 0; i < size; i += 16) put(i, load(norm.weight + i) * (load(x + i) * scale));
        return;
    }
    for (int i = 0; i < size; i += 16) sums = sums + load(x + i);
    const F16 mean = splat(sum(sums) / float(size));
    for (int i = 0; i < size; i += 16) squares = fma(load(x + i) - mean, load(x + i) - mean, squares);
    const F16 scale = splat(1.0f / std::sqrt(sum(squares) / float(size) + norm.eps));
    for (int i = 0; i < size; i += 16) {
        const F16 bias = norm.bias ? load(norm.bias + i) : splat(0.0f);
        put(i, fma(load(norm.weight + i), (load(x + i) - mean) * scale, bias));
    }
}

// What enters a product: one token, normalized and packed as row `row` of `y`.
template <class T>
void pack_normalized(const float* x, const Norm& norm, int size, PackedRows<T> y, int64_t row) {
    normalize(x, norm, size, [&](int i, F16 value) { y.put(row, i, value); });
}

// x += scale · norm(y)
INLINE void add_normalized(float* x, const float* y, const Norm& norm, int size, float scale) {
    normalize(y, norm, size, [&](int i, F16 value) { store(x + i, fma(value, splat(scale), load(x + i))); });
}

INLINE void normalize_in_place(float* x, const Norm& norm, int size) {
    if (norm.weight) normalize(x, norm, size, [&](int i, F16 value) { store(x + i, value); });
}

// Rotate the first `rotary.size` numbers of a head in place (pairs are their two halves) and multiply all by `scale`.
INLINE void rotate(float* x, const Rotary& rotary, int64_t position, int head_dim, float scale) {
    const int half = rotary.size / 2;
    const float *cosine = rotary.cosine + position * half, *sine = rotary.sine + position * half;
    int i = 0;
    for (; i + 16 <= half; i += 16) {
        const F16 c = load(cosine + i) * splat(scale), s = load(sine + i) * splat(scale);
        const F16 a = load(x + i), b = load(x + half + i);
        store(x + i, a * c - b * s);
        store(x + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = x[i], b = x[half + i];
        x[i] = (a * cosine[i] - b * sine[i]) * scale;
        x[half + i] = (b * cosine[i] + a * sine[i]) * scale;
    }
    for (i = 2 * half; i < head_dim; ++i) x[i] *= scale;
}
