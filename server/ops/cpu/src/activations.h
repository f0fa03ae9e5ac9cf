// What stands between the two products of a feed-forward part, on sixteen lanes.
#pragma once

#include "simd.h"

enum Activation : int32_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };

// x · sigmoid(y), given −y in base 2
template <class T>
INLINE F16 times_sigmoid(F16 x, F16 exponent) {
    return x / (splat(1.0f) + exp2<T>(min(exponent, splat(126.0f))));
}

// erfc(z) for z ≥ 0, to a relative error of 1.2e-7 (Press et al., Numerical Recipes, 6.2).
INLINE F16 complementary_error(F16 z) {
    const F16 t = splat(1.0f) / fma(splat(0.5f), z, splat(1.0f));
    F16 p = fma(splat(0.17087277f), t, splat(-0.82215223f));
    for (float c : {1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f, 0.37409196f, 1.00002368f})
        p = fma(p, t, splat(c));
    p = fma(p, t, splat(-1.26551223f)) - z * z;
    return t * exp2<float>(p * splat(kLog2E));
}

template <class T, Activation kKind>
INLINE F16 activate(F16 x) {
    if constexpr (kKind == kSilu) return times_sigmoid<T>(x, x * splat(-kLog2E));
    if constexpr (kKind == kGelu) {  // x · Φ(x), which is erfc(−x / √2) / 2
        const F16 tail = splat(0.5f) * complementary_error(max(x, splat(0.0f) - x) * splat(0.707106781f));
        return x * select_at_least(x, splat(0.0f), splat(1.0f) - tail, tail);
    }
    if constexpr (kKind == kGeluTanh) {  // x · (1 + tanh(y)) / 2 = x · sigmoid(2y)
        const F16 y = x * fma(x * x, splat(0.044715f), splat(1.0f)) * splat(0.797884561f);
        return times_sigmoid<T>(x, y * splat(-2 * kLog2E));
    }
    const F16 positive = max(x, splat(0.0f));
    if constexpr (kKind == kRelu2) return positive * positive;
    return positive;
}

// A gate within limits: g · σ(sharpness · g) · (u + 1). No limit: there is none.
struct Clamp {
    float limit, sharpness;
};

template <class T>
INLINE F16 clamped(F16 gate, F16 up, const Clamp& clamp) {
    const F16 limit = splat(clamp.limit), g = min(gate, limit);
    const F16 u = max(min(up, limit), splat(-clamp.limit)) + splat(1.0f);
    return times_sigmoid<T>(g, g * splat(-clamp.sharpness * kLog2E)) * u;
}

// Call body.operator()<kind>() with the kind that is known at run time.
template <class Body>
INLINE void with_activation(int32_t kind, const Body& body) {
    switch (kind) {
        case kSilu: return body.template operator()<kSilu>();
        case kGelu: return body.template operator()<kGelu>();
        case kGeluTanh: return body.template operator()<kGeluTanh>();
        case kRelu: return body.template operator()<kRelu>();
        default: return body.template operator()<kRelu2>();
    }
}
