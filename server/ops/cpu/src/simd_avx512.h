// F16 as one AVX-512 register.
#pragma once

#include <immintrin.h>

struct F16 {
    __m512 v;
};

constexpr int kKernelRows = 8;  // most rows of a product at once
constexpr int kKernelSums = 16;  // and sums, F16 each: as many as leave registers for weights

INLINE F16 splat(float x) { return {_mm512_set1_ps(x)}; }
INLINE F16 operator+(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE F16 operator-(F16 a, F16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
INLINE F16 operator*(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE F16 operator/(F16 a, F16 b) { return {_mm512_div_ps(a.v, b.v)}; }
INLINE F16 fma(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE F16 max(F16 a, F16 b) { return {_mm512_max_ps(a.v, b.v)}; }
INLINE F16 min(F16 a, F16 b) { return {_mm512_min_ps(a.v, b.v)}; }
INLINE F16 round(F16 a) { return {_mm512_roundscale_ps(a.v, 0)}; }
INLINE F16 scale_by_power_of_two(F16 a, F16 n) { return {_mm512_scalef_ps(a.v, n.v)}; }
INLINE float sum(F16 a) {  // halves upon halves: lanes i and i + 8, then i and i + 4, 2, 1
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float first_lane(F16 a) { return _mm512_cvtss_f32(a.v); }
INLINE float maximum(F16 a) { return _mm512_reduce_max_ps(a.v); }

// a where limit ≥ x, else b, per lane
INLINE F16 select_at_least(F16 limit, F16 x, F16 a, F16 b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(limit.v, x.v, _CMP_GE_OQ), b.v, a.v)};
}

INLINE F16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
INLINE F16 load(const bf16* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
INLINE void store(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }

INLINE __m256i round_to_bf16(F16 a) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(a.v);
#else
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16));
#endif
}
INLINE void store(bf16* p, F16 a) { _mm256_storeu_si256((__m256i*)p, round_to_bf16(a)); }

// pairs[lane] = (low[lane], high[lane]) as bf16: the operand format of dot products of
// pairs; halves round away from zero, which costs less than to even
INLINE void store_pairs(bf16* pairs, F16 low, F16 high) {
    const __m512i half = _mm512_set1_epi32(0x8000), top = _mm512_set1_epi32(int(0xffff0000));
    const __m512i l = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low.v), half), 16);
    const __m512i h = _mm512_add_epi32(_mm512_castps_si512(high.v), half);
    _mm512_storeu_si512(pairs, _mm512_ternarylogic_epi32(l, h, top, 0xf8));  // l | (h & top)
}

// Pairs of bf16, one a lane, as dot_pairs() takes them; splat_pair() gives one to all lanes.
#ifdef __AVX512BF16__
struct Pairs {
    __m512i v;
};

INLINE Pairs load_pairs(const bf16* pairs) { return {_mm512_loadu_si512(pairs)}; }
INLINE Pairs splat_pair(const bf16* pair) {
    int32_t both;
    std::memcpy(&both, pair, 4);
    return {_mm512_set1_epi32(both)};
}
#else
struct Pairs {
    __m512 low, high;
};

INLINE Pairs widen_pairs(__m512i pairs) {
    const __m512i top = _mm512_set1_epi32(int(0xffff0000));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(_mm512_and_si512(pairs, top))};
}
INLINE Pairs load_pairs(const bf16* pairs) { return widen_pairs(_mm512_loadu_si512(pairs)); }
INLINE Pairs splat_pair(const bf16* pair) {
    int32_t both;
    std::memcpy(&both, pair, 4);
    return widen_pairs(_mm512_set1_epi32(both));
}
#endif

// c + a.low · b.low + a.high · b.high per lane
INLINE F16 dot_pairs(F16 c, Pairs a, Pairs b) {
#ifdef __AVX512BF16__
    return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
#else
    return {_mm512_fmadd_ps(a.high, b.high, _mm512_fmadd_ps(a.low, b.low, c.v))};
#endif
}

// Transpose 16 × 16 numbers of 32 bits in place: 4×4 within 128 bits, then the 128-bit parts.
INLINE void transpose(F16 (&rows)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 4) {
        const __m512 a = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
        const __m512 b = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
        const __m512 c = _mm512_unpacklo_ps(rows[i + 2].v, rows[i + 3].v);
        const __m512 d = _mm512_unpackhi_ps(rows[i + 2].v, rows[i + 3].v);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512 a = _mm512_shuffle_f32x4(t[j], t[j + 4], 0x88);
        const __m512 b = _mm512_shuffle_f32x4(t[j], t[j + 4], 0xdd);
        const __m512 c = _mm512_shuffle_f32x4(t[j + 8], t[j + 12], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(t[j + 8], t[j + 12], 0xdd);
        rows[j].v = _mm512_shuffle_f32x4(a, c, 0x88);
        rows[j + 4].v = _mm512_shuffle_f32x4(b, d, 0x88);
        rows[j + 8].v = _mm512_shuffle_f32x4(a, c, 0xdd);
        rows[j + 12].v = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}
