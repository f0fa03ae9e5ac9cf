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

INLINE void prefetch_far(const void* address) { __builtin_prefetch(address, 0, 2); }  // not into the first level

constexpr float kLog2E = 1.44269504088896341f;

// The sum of sixteen numbers in the order of sum(F16), where each comes from a call: pair(i) is number i
// plus number i + 8. Numbers may be anything that adds. Called with kStep 1 and lane 0.
template <int kStep, class Pair>
INLINE auto sum_of_pairs(const Pair& pair, int lane) {
    if constexpr (kStep == 8)
        return pair(lane);
    else
        return sum_of_pairs<2 * kStep>(pair, lane) + sum_of_pairs<2 * kStep>(pair, lane + kStep);
}

// 2 to the power x, as exactly as it matters for results in T: relative error below 8e-8 for float,
// 8e-5 for bf16. Less than -125, minus infinity included, gives exactly zero: denormal numbers are slow.
// 2ⁿ · 2ᶠ with n the nearest integer and Chebyshev's approximation of 2ᶠ on [-½, ½].
template <class T>
INLINE F16 exp2(F16 x) {
    const F16 least = splat(-125.0f), y = max(x, least), n = round(y), f = y - n;
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
    return select_at_least(x, least, scale_by_power_of_two(p, n), splat(0.0f));
}

// What sums of weights relative to `highest` are multiplied with where `now`, which is not less, takes its
// place; exactly one where both are equal.
INLINE F16 fading(F16 highest, F16 now) {
    return select_at_least(highest, now, splat(1.0f), exp2<float>(highest - now));
}

// (e²ˣ − 1) / (e²ˣ + 1), to the last bits near 0 as well: 2ⁿ · (2ᶠ − 1) + (2ⁿ − 1), Taylor's series of 2ᶠ − 1.
INLINE F16 tanh(F16 x) {
    const F16 y = min(max(x * splat(2 * kLog2E), splat(-30.0f)), splat(30.0f));
    const F16 n = round(y), f = y - n;
    F16 p = fma(splat(1.52527338e-5f), f, splat(1.54035304e-4f));
    p = fma(p, f, splat(1.33335581e-3f));
    p = fma(p, f, splat(9.61812911e-3f));
    p = fma(p, f, splat(5.55041087e-2f));
    p = fma(p, f, splat(0.240226507f));
    p = fma(p, f, splat(0.693147181f)) * f;
    const F16 power = scale_by_power_of_two(splat(1.0f), n);
    const F16 less_one = fma(power, p, power - splat(1.0f));
    return less_one / (less_one + splat(2.0f));
}

// limit · tanh(x / limit)
INLINE F16 softcap(F16 x, float limit) { return splat(limit) * tanh(x * splat(1.0f / limit)); }
