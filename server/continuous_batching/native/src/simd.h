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

// exp(x) with a relative error below 2e-7; x below -87 gives (nearly) zero, -infinity included.
// Range reduction to |r| ≤ ln2 / 2 and the polynomial of Cephes' expf (Moshier, 1992).
INLINE F16 exp(F16 x) {
    x = min(max(x, splat(-87.33f)), splat(88.37f));
    const F16 n = round(x * splat(1.44269504088896341f));
    F16 r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    F16 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r + splat(1.0f));
    return scale_by_power_of_two(p, n);
}

// x · sigmoid(x)
INLINE F16 silu(F16 x) { return x / (splat(1.0f) + exp(splat(0.0f) - x)); }
