// F16 as two vectors of eight in the compiler's own vector types: AVX2, or whatever the target has.
#pragma once

#include <cmath>

#ifdef __FMA__
#include <immintrin.h>
#endif

typedef float Half __attribute__((vector_size(32)));
typedef int32_t HalfInt __attribute__((vector_size(32)));
typedef uint32_t HalfBits __attribute__((vector_size(32)));
typedef uint16_t HalfShort __attribute__((vector_size(16)));

struct F16 {
    Half a, b;
};

constexpr int kKernelRows = 4;  // most rows of a product at once
constexpr int kKernelSums = 4;  // and sums, F16 each: as many as leave registers for weights

INLINE Half splat_half(float x) { return Half{} + x; }
INLINE F16 splat(float x) { return {splat_half(x), splat_half(x)}; }
INLINE F16 operator+(F16 x, F16 y) { return {x.a + y.a, x.b + y.b}; }
INLINE F16 operator-(F16 x, F16 y) { return {x.a - y.a, x.b - y.b}; }
INLINE F16 operator*(F16 x, F16 y) { return {x.a * y.a, x.b * y.b}; }
INLINE F16 operator/(F16 x, F16 y) { return {x.a / y.a, x.b / y.b}; }
// Rounded once where the processor can, for whatever loop it stands in.
INLINE Half fma_half(Half x, Half y, Half z) {
#if defined(__FMA__)
    return (Half)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < 8; ++i) z[i] = __builtin_fmaf(x[i], y[i], z[i]);
    return z;
#else
    return x * y + z;
#endif
}
INLINE F16 fma(F16 x, F16 y, F16 z) { return {fma_half(x.a, y.a, z.a), fma_half(x.b, y.b, z.b)}; }
INLINE F16 max(F16 x, F16 y) { return {x.a > y.a ? x.a : y.a, x.b > y.b ? x.b : y.b}; }
INLINE F16 min(F16 x, F16 y) { return {x.a < y.a ? x.a : y.a, x.b < y.b ? x.b : y.b}; }

INLINE Half round_half(Half x) {  // adding 1.5 · 2²³ leaves no bits for a fraction
    const Half magic = splat_half(12582912.0f);
    volatile Half shifted = x + magic;  // volatile: the compiler may not cancel the two
    return shifted - magic;
}
INLINE F16 round(F16 x) { return {round_half(x.a), round_half(x.b)}; }

INLINE Half scale_half(Half x, Half n) {
    const HalfInt power = (__builtin_convertvector(n, HalfInt) + 127) << 23;
    return x * (Half)power;
}
INLINE F16 scale_by_power_of_two(F16 x, F16 n) { return {scale_half(x.a, n.a), scale_half(x.b, n.b)}; }

INLINE float sum(F16 x) {  // halves upon halves: lanes i and i + 8, then i and i + 4, 2, 1
    const Half s = x.a + x.b;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}
INLINE float first_lane(F16 x) { return x.a[0]; }
INLINE float maximum(F16 x) {
    const Half m = x.a > x.b ? x.a : x.b;
    float best = m[0];
    for (int i = 1; i < 8; ++i) best = m[i] > best ? m[i] : best;
    return best;
}

// a where limit ≥ x, else b, per lane
INLINE F16 select_at_least(F16 limit, F16 x, F16 a, F16 b) {
    return {limit.a >= x.a ? a.a : b.a, limit.b >= x.b ? a.b : b.b};
}

INLINE F16 load(const float* p) {
    F16 x;
    std::memcpy(&x, p, 64);
    return x;
}
INLINE Half widen_half(const bf16* p) {
    HalfShort bits;
    std::memcpy(&bits, p, 16);
    return (Half)(__builtin_convertvector(bits, HalfBits) << 16);
}
INLINE F16 load(const bf16* p) { return {widen_half(p), widen_half(p + 8)}; }
INLINE void store(float* p, F16 x) { std::memcpy(p, &x, 64); }

INLINE HalfBits round_to_bf16(Half x) {
    const HalfBits bits = (HalfBits)x;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
INLINE void store(bf16* p, F16 x) {
    const HalfShort a = __builtin_convertvector(round_to_bf16(x.a), HalfShort);
    const HalfShort b = __builtin_convertvector(round_to_bf16(x.b), HalfShort);
    std::memcpy(p, &a, 16);
    std::memcpy(p + 8, &b, 16);
}

// pairs[lane] = (low[lane], high[lane]) as bf16: the operand format of dot products of pairs
INLINE void store_pairs(bf16* pairs, F16 low, F16 high) {
    const HalfBits a = round_to_bf16(low.a) | round_to_bf16(high.a) << 16;
    const HalfBits b = round_to_bf16(low.b) | round_to_bf16(high.b) << 16;
    std::memcpy(pairs, &a, 32);
    std::memcpy(pairs + 16, &b, 32);
}

// Pairs of bf16, one a lane, as dot_pairs() takes them; splat_pair() gives one to all lanes.
struct Pairs {
    F16 low, high;
};

INLINE Pairs load_pairs(const bf16* pairs) {
    HalfBits w[2];
    std::memcpy(w, pairs, 64);
    return {{(Half)(w[0] << 16), (Half)(w[1] << 16)}, {(Half)(w[0] & 0xffff0000u), (Half)(w[1] & 0xffff0000u)}};
}
INLINE Pairs splat_pair(const bf16* pair) {
    const uint32_t bits[2] = {uint32_t(pair[0].bits) << 16, uint32_t(pair[1].bits) << 16};
    float both[2];
    std::memcpy(both, bits, 8);
    return {splat(both[0]), splat(both[1])};
}

// c + a.low · b.low + a.high · b.high per lane
INLINE F16 dot_pairs(F16 c, const Pairs& a, const Pairs& b) { return fma(a.high, b.high, fma(a.low, b.low, c)); }

// Transpose 16 × 16 numbers in place.
INLINE void transpose(F16 (&rows)[16]) {
    float in[16][16], out[16][16];
    std::memcpy(in, rows, sizeof in);
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) out[j][i] = in[i][j];
    std::memcpy(rows, out, sizeof out);
}
