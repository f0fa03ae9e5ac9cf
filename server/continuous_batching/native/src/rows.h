// What happens to single tokens between the products: embedding, norms, rotation.
#pragma once

#include <cmath>

#include "layout.h"

// Widen one row of the embedding.
template <class T>
void embed(const T* embedding, int64_t token, int hidden, float* x) {
    const T* source = embedding + token * hidden;
    for (int i = 0; i < hidden; i += 16) store(x + i, load(source + i));
}

// 1 / rms(x) over `size` numbers, a multiple of 16
INLINE float inverse_rms(const float* x, int size, float eps) {
    F16 squares = splat(0.0f);
    for (int i = 0; i < size; i += 16) squares = fma(load(x + i), load(x + i), squares);
    return 1.0f / std::sqrt(sum(squares) / float(size) + eps);
}

// RMS norm of one token, packed as row `row` of `y`.
template <class T>
void norm(const float* x, const float* weight, int size, float eps, PackedRows<T> y, int64_t row) {
    const F16 scale = splat(inverse_rms(x, size, eps));
    for (int i = 0; i < size; i += 16) y.put(row, i, load(weight + i) * (load(x + i) * scale));
}

// RMS norm of one head, in place.
INLINE void norm_head(float* x, const float* weight, int size, float eps) {
    const F16 scale = splat(inverse_rms(x, size, eps));
    for (int i = 0; i < size; i += 16) store(x + i, load(weight + i) * (load(x + i) * scale));
}

// Rotate one head in place (pairs are its two halves) and multiply it by `scale`.
// cosine, sine: [head_dim / 2] of the token's position.
INLINE void rotate(float* x, const float* cosine, const float* sine, int head_dim, float scale) {
    const int half = head_dim / 2;
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
}
