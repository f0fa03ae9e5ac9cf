// Codes of 4, 5, 6 or 8 bits in registers.
//
// A chunk holds the codes of 16 inputs × 32 outputs. Inputs come in quads; of each quad a vector of 64 bytes has
// four bytes for each of sixteen outputs, of inputs 0, 2, 1, 3. The order serves both kinds of products: a shift by
// 8 brings out inputs 2 and 3 where 0 and 1 were, as the dot product of bf16 pairs wants them, and for one of bytes
// the activations lie in the same order.
//
//   4 bits       one vector a quad: the lower half of a byte is output j, the upper half output j + 16
//   5 and 6      the same with the lower four bits, and after all quads the bits above: 1 or 2 bits of a byte
//                for each panel of each quad in turn, from the lowest on (1 or 2 vectors)
//   8            two vectors a quad: outputs 0–15, then 16–31
//
// Codes are unsigned; a signed one is stored plus its middle, 2 ^ (bits − 1).
#pragma once

#include "simd.h"

constexpr int kChunk = 16;  // inputs
constexpr int chunk_bytes(int bits) { return 64 * bits; }

#ifdef __AVX512BW__

// Four unsigned bytes for each of sixteen outputs.
struct Quad {
    __m512i v;
};
// Two numbers for each of sixteen outputs, as bf16: exact, for they are whole.
struct CodePairs {
    __m512i v;
};

INLINE Quad load_quad(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int kShift>  // to the right; less than 0: to the left
INLINE Quad shifted(Quad x) {
    if constexpr (kShift > 0) return {_mm512_srli_epi32(x.v, kShift)};
    if constexpr (kShift < 0) return {_mm512_slli_epi32(x.v, -kShift)};
    return x;
}
INLINE Quad masked(Quad x, int mask) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(char(mask)))}; }
INLINE Quad merged(Quad x, Quad y, int mask) {  // x | (y & mask)
    return {_mm512_ternarylogic_epi32(x.v, y.v, _mm512_set1_epi8(char(mask)), 0xf8)};
}

// What pair_of() gives is the code less its middle, times this.
template <int kBits>
constexpr float kPairUnit = kBits == 8 ? 16777216.0f : 1.0f;

// Inputs 0 and 1 of a quad (pair 0), or 2 and 3.
template <int kBits, int kPair>
INLINE CodePairs pair_of(Quad x) {
    alignas(64) static constexpr uint16_t kTable[64] = {
        0xc200, 0xc1f8, 0xc1f0, 0xc1e8, 0xc1e0, 0xc1d8, 0xc1d0, 0xc1c8, 0xc1c0, 0xc1b8, 0xc1b0, 0xc1a8, 0xc1a0, 0xc198, 0xc190, 0xc188,
        0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130, 0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
        0,      0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,
        0x4180, 0x4188, 0x4190, 0x4198, 0x41a0, 0x41a8, 0x41b0, 0x41b8, 0x41c0, 0x41c8, 0x41d0, 0x41d8, 0x41e0, 0x41e8, 0x41f0, 0x41f8};
    if constexpr (kBits == 8) {  // a float of 2 ^ 24 times a signed byte has its lower half empty
        const __m512i codes = _mm512_xor_si512(x.v, _mm512_set1_epi8(char(0x80)));
        const __m512i top = _mm512_set1_epi32(int(0xff000000));
        const __m512i first = kPair ? _mm512_and_si512(_mm512_slli_epi32(codes, 16), top) : _mm512_slli_epi32(codes, 24);
        const __m512i second = _mm512_and_si512(kPair ? codes : _mm512_slli_epi32(codes, 8), top);
        const __m512i low = _mm512_castps_si512(_mm512_cvtepi32_ps(first));
        const __m512i high = _mm512_castps_si512(_mm512_cvtepi32_ps(second));
        return {_mm512_or_si512(_mm512_srli_epi32(low, 16), high)};
    } else {
        // words as they are index the table: it looks at the lowest bits alone
        const __m512i index = kPair ? _mm512_srli_epi16(x.v, 8) : x.v;
        if constexpr (kBits == 6)
            return {_mm512_permutex2var_epi16(_mm512_load_si512(kTable), index, _mm512_load_si512(kTable + 32))};
        else  // the middle 32 entries; of codes of 4 bits the fifth bit is 0, and they begin at −8
            return {_mm512_permutexvar_epi16(index, _mm512_loadu_si512(kTable + (kBits == 5 ? 16 : 24)))};
    }
}

INLINE F16 first_of(CodePairs x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
INLINE F16 second_of(CodePairs x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(int(0xffff0000))))};
}

INLINE void store_codes(bf16* place, CodePairs x) { _mm512_storeu_si512(place, x.v); }
INLINE CodePairs load_codes(const bf16* place) { return {_mm512_loadu_si512(place)}; }

#else

struct Quad {
    HalfBits a, b;
};
struct CodePairs {
    F16 first, second;
};

INLINE Quad load_quad(const uint8_t* p) {
    Quad x;
    std::memcpy(&x, p, 64);
    return x;
}
template <int kShift>
INLINE Quad shifted(Quad x) {
    if constexpr (kShift > 0) return {x.a >> kShift, x.b >> kShift};
    if constexpr (kShift < 0) return {x.a << -kShift, x.b << -kShift};
    return x;
}
INLINE Quad masked(Quad x, int mask) {
    const uint32_t all = uint32_t(mask) * 0x01010101u;
    return {x.a & all, x.b & all};
}
INLINE Quad merged(Quad x, Quad y, int mask) {
    const Quad more = masked(y, mask);
    return {x.a | more.a, x.b | more.b};
}

template <int kBits>
constexpr float kPairUnit = 1.0f;

template <int kBits, int kPair>
INLINE CodePairs pair_of(Quad x) {
    const auto number = [](HalfBits lanes, int shift) {
        return __builtin_convertvector((HalfInt)((lanes >> shift) & 255) - (1 << (kBits - 1)), Half);
    };
    return {{number(x.a, 8 * kPair), number(x.b, 8 * kPair)}, {number(x.a, 8 * kPair + 16), number(x.b, 8 * kPair + 16)}};
}

INLINE F16 first_of(CodePairs x) { return x.first; }
INLINE F16 second_of(CodePairs x) { return x.second; }
INLINE void store_codes(bf16* place, CodePairs x) { store_pairs(place, x.first, x.second); }
INLINE CodePairs load_codes(const bf16* place) {
    Quad x;
    std::memcpy(&x, place, 64);
    const auto low = [](HalfBits pair) { return (Half)(pair << 16); };
    const auto high = [](HalfBits pair) { return (Half)(pair & 0xffff0000u); };
    return {{low(x.a), low(x.b)}, {high(x.a), high(x.b)}};
}

#endif

INLINE void store_codes(float* place, CodePairs x) {
    store(place, first_of(x));
    store(place + 16, second_of(x));
}

// The codes of a chunk's quad for one panel.
template <int kBits, int kQuad, int kPanel>
INLINE Quad quad_of(const uint8_t* chunk) {
    if constexpr (kBits == 8) {
        return load_quad(chunk + (2 * kQuad + kPanel) * 64);
    } else {
        const Quad low = masked(shifted<4 * kPanel>(load_quad(chunk + kQuad * 64)), 15);
        if constexpr (kBits == 4) return low;
        constexpr int kMore = kBits - 4, kPlace = (2 * kQuad + kPanel) * kMore;
        const Quad high = load_quad(chunk + (4 + kPlace / 8) * 64);
        return merged(low, shifted<kPlace % 8 - 4>(high), ((1 << kMore) - 1) << 4);
    }
}

// Write codes in the layout above: words [quad][panel][sixteen outputs], four unsigned bytes each, of inputs in order.
inline void pack_chunk(int bits, const uint32_t (&words)[4][2][16], uint8_t* chunk) {
    uint32_t vectors[8][16] = {};
    for (int quad = 0; quad < 4; ++quad)
        for (int panel = 0; panel < 2; ++panel)
            for (int lane = 0; lane < 16; ++lane) {
                const uint32_t w = words[quad][panel][lane];
                const uint32_t swapped = (w & 0xff0000ffu) | (w & 0xff00u) << 8 | (w >> 8 & 0xff00u);
                if (bits == 8) {
                    vectors[2 * quad + panel][lane] = swapped;
                    continue;
                }
                vectors[quad][lane] |= (swapped & 0x0f0f0f0fu) << (4 * panel);
                const int more = bits - 4, place = (2 * quad + panel) * more;
                const uint32_t mask = ((1u << more) - 1) * 0x01010101u;
                if (more) vectors[4 + place / 8][lane] |= (swapped >> 4 & mask) << (place % 8);
            }
    std::memcpy(chunk, vectors, size_t(chunk_bytes(bits)));
}
