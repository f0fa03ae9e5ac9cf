// Sixteen float32 lanes, whatever the processor: the unit in which all kernels are written.
//
// F16 holds sixteen floats: one AVX-512 register, or two halves elsewhere. Storage types are float
// and bf16 (the upper half of a float); loads widen, stores round to nearest even.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

struct bf16 {
    uint16_t bits;
};

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "simd_avx512.h"
#else
#include "simd_portable.h"
#endif

INLINE float widen(float x) { return x; }
INLINE float widen(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 3); }
INLINE void prefetch_far(const void* address) { __builtin_prefetch(address, 0, 2); }  // not into the first level

constexpr float kLog2E = 1.44269504088896341f;

// 2 to the power x, as exactly as it matters for results in T: relative error below 8e-8 for float,
// 8e-5 for bf16. Less than -125, minus infinity included, gives (nearly) zero.
// 2ⁿ · 2ᶠ with n the nearest integer and Chebyshev's approximation of 2ᶠ on [-½, ½].
template <class T>
INLINE F16 exp2(F16 x) {
    x = max(x, splat(-125.0f));
    const F16 n = round(x), f = x - n;
    F16 p;
    if constexpr (sizeof(T) == 2) {
        p = fma(splat(0.0550886838f), f, splat(0.242604051f));
        p = fma(p, f, splat(0.693276242f));
        p = fma(p, f, splat(0.99992894f));
    } else {
        p = fma(splat(0.00132669704f), f, splat(0.00967545975f));
        p = fma(p, f, splat(0.0555074262f));
        p = fma(p, f, splat(0.240221218f));
        p = fma(p, f, splat(0.693146949f));
        p = fma(p, f, splat(1.00000007f));
    }
    return scale_by_power_of_two(p, n);
}

// x · sigmoid(x)
template <class T>
INLINE F16 silu(F16 x) {
    const F16 exponent = min(x * splat(-kLog2E), splat(126.0f));
    return x / (splat(1.0f) + exp2<T>(exponent));
}
