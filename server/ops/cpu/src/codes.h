// Weights of 4 bits in registers.
//
// A vector of 64 bytes holds the codes of 4 inputs × 32 outputs. Its lane j of 32 bits serves outputs
// j and j + 16 of the stripe: inputs 0 and 2 in the lower half, 1 and 3 in the upper one, and there
//
//   bits 0–3: input 0 (1), output j      bits 4–7:   input 0 (1), output j + 16
//   bits 8–11: input 2 (3), output j     bits 12–15: input 2 (3), output j + 16
//
// so that one shift brings out a pair of inputs for each of sixteen outputs: the operand of a dot
// product of bf16 pairs. Quarter q of a vector is pair q / 2 of panel q % 2.
#pragma once

#include "layout.h"

constexpr int kCodesMiddle = 8;  // what is taken off a code, so that a symmetric weight has zero point 0
constexpr int kCodesVector = 64;

#ifdef __AVX512BW__

// A pair of numbers for each of sixteen outputs, as bf16: exact, for they are whole.
struct CodePairs {
    __m512i v;
};

// The codes less 8 of quarter `kQuarter`. A table of 32 entries is looked up with 5 bits, of which the
// highest belongs to the neighbour: both halves of the table are the same.
template <int kQuarter>
INLINE CodePairs unpack_codes(const uint8_t* vector) {
    alignas(64) static constexpr uint16_t kTable[32] = {
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
    const __m512i codes = _mm512_loadu_si512(vector);
    return {_mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * kQuarter), _mm512_load_si512(kTable))};
}

INLINE F16 first_of(CodePairs x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
INLINE F16 second_of(CodePairs x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(int(0xffff0000))))};
}

INLINE void store_codes(bf16* place, CodePairs x) { _mm512_storeu_si512(place, x.v); }

#else

struct CodePairs {
    F16 first, second;
};

template <int kQuarter>
INLINE CodePairs unpack_codes(const uint8_t* vector) {
    HalfBits codes[2];
    std::memcpy(codes, vector, kCodesVector);
    const auto number = [](HalfBits part, int shift) {
        return __builtin_convertvector((HalfInt)((part >> shift) & 15) - kCodesMiddle, Half);
    };
    constexpr int shift = 4 * kQuarter;
    return {{number(codes[0], shift), number(codes[1], shift)},
            {number(codes[0], shift + 16), number(codes[1], shift + 16)}};
}

INLINE F16 first_of(CodePairs x) { return x.first; }
INLINE F16 second_of(CodePairs x) { return x.second; }
INLINE void store_codes(bf16* place, CodePairs x) { store_pairs(place, x.first, x.second); }

#endif

INLINE void store_codes(float* place, CodePairs x) {
    store(place, first_of(x));
    store(place + kStepStride<float>, second_of(x));
}

// c + a[0] · first + a[1] · second per lane
template <class T>
INLINE F16 dot_codes(F16 c, const T* a, CodePairs codes) {
#ifdef __AVX512BF16__
    if constexpr (sizeof(T) == 2) {
        int32_t both;
        std::memcpy(&both, a, 4);
        return {_mm512_dpbf16_ps(c.v, (__m512bh)_mm512_set1_epi32(both), (__m512bh)codes.v)};
    }
#endif
    return fma(splat(widen(a[1])), second_of(codes), fma(splat(widen(a[0])), first_of(codes), c));
}

// Sixteen signed bytes as floats.
INLINE F16 load_bytes(const int8_t* p) {
    F16 x;
    float wide[16];
    for (int i = 0; i < 16; ++i) wide[i] = float(p[i]);
    std::memcpy(&x, wide, sizeof x);
    return x;
}
