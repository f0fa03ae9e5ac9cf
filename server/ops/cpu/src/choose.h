// Choosing a token: the greatest of score / temperature + Gumbel noise, as server/sampling/random.py defines it.
//
// A token's noise needs two logarithms, but few tokens can win. With k the token's random word, its noise is at
// most log(2^33 / k), and for that the exponent of k is enough: only where the score comes with it above the best
// so far, the noise is computed. So a token costs its share of the generator (four words for ten products), one
// sum and one comparison.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd.h"

// Sixteen random words side by side.
#ifdef __AVX512F__

struct U16 {
    __m512i v;
};

INLINE U16 splat_word(uint32_t x) { return {_mm512_set1_epi32(int(x))}; }
INLINE U16 words_from(uint32_t x) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return {_mm512_add_epi32(_mm512_set1_epi32(int(x)), lane)};
}
INLINE U16 exclusive_or(U16 a, U16 b, U16 c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)}; }
INLINE void multiply(U16 x, uint32_t factor, U16& high, U16& low) {
    const __m512i f = _mm512_set1_epi32(int(factor));
    const __m512i even = _mm512_mul_epu32(x.v, f), odd = _mm512_mul_epu32(_mm512_srli_epi64(x.v, 32), f);
    high.v = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    low.v = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}
INLINE void store(uint32_t* p, U16 x) { _mm512_storeu_si512(p, x.v); }
INLINE F16 exponents(U16 x) { return {_mm512_getexp_ps(_mm512_cvtepu32_ps(x.v))}; }  // of 0: -inf
INLINE uint32_t above(F16 a, F16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
INLINE uint32_t not_numbers(F16 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }

#else

struct U16 {
    uint32_t v[16];
};

template <class Lane>
INLINE U16 each_word(Lane lane) {
    U16 y;
    for (int i = 0; i < 16; ++i) y.v[i] = lane(i);
    return y;
}
template <class Lane>
INLINE uint32_t each_bit(Lane lane) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= uint32_t(lane(i)) << i;
    return bits;
}

INLINE U16 splat_word(uint32_t x) { return each_word([=](int) { return x; }); }
INLINE U16 words_from(uint32_t x) { return each_word([=](int i) { return x + uint32_t(i); }); }
INLINE U16 exclusive_or(const U16& a, const U16& b, const U16& c) {
    return each_word([&](int i) { return a.v[i] ^ b.v[i] ^ c.v[i]; });
}
INLINE void multiply(const U16& x, uint32_t factor, U16& high, U16& low) {
    for (int i = 0; i < 16; ++i) {
        const uint64_t product = uint64_t(x.v[i]) * factor;
        high.v[i] = uint32_t(product >> 32);
        low.v[i] = uint32_t(product);
    }
}
INLINE void store(uint32_t* p, const U16& x) { std::memcpy(p, x.v, sizeof x.v); }
INLINE F16 exponents(const U16& x) {
    float y[16];
    for (int i = 0; i < 16; ++i) {
        const float wide = float(x.v[i]);
        int32_t bits;
        std::memcpy(&bits, &wide, 4);
        y[i] = float((bits >> 23) - 127);
    }
    return load(y);
}
INLINE uint32_t above(F16 a, F16 b) {
    float x[16], y[16];
    store(x, a);
    store(y, b);
    return each_bit([&](int i) { return x[i] > y[i]; });
}
INLINE uint32_t not_numbers(F16 a) {
    float x[16];
    store(x, a);
    return each_bit([&](int i) { return x[i] != x[i]; });
}

#endif

// What the noise of a line depends on.
struct NoiseKey {
    int64_t seed, answer, position;
};

// Philox-4x32 with seven rounds: four words of each of sixteen counters, which begin at `counter`.
INLINE void philox(uint32_t counter, const NoiseKey& key, U16 (&words)[4]) {
    U16 c0 = words_from(counter), c1 = splat_word(uint32_t(key.position));
    U16 c2 = splat_word(uint32_t(key.answer)), c3 = splat_word(0);
    uint32_t k0 = uint32_t(key.seed), k1 = uint32_t(uint64_t(key.seed) >> 32);
    for (int round = 0; round < 7; ++round) {
        U16 high0, low0, high2, low2;
        multiply(c0, 0xD2511F53, high0, low0);
        multiply(c2, 0xCD9E8D57, high2, low2);
        c0 = exclusive_or(high2, c1, splat_word(k0));
        c1 = low2;
        c2 = exclusive_or(high0, c3, splat_word(k1));
        c3 = low0;
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    words[0] = c0;
    words[1] = c1;
    words[2] = c2;
    words[3] = c3;
}

INLINE float gumbel(uint32_t word) { return float(-std::log(-std::log1p((double(word) + 0.5) * -0x1p-32))); }

// The best token of a part of a line; NaN as `best` if anything there is not a number.
struct BestToken {
    float best = -std::numeric_limits<float>::infinity();
    int64_t token = -1;
};

// A bit for each token that may be chosen, the lowest first; all may where there are no words.
struct TokenMask {
    const uint32_t* words = nullptr;
    int64_t count = 0;

    // The bits of tokens [block, block + 64).
    uint64_t of(int64_t block) const {
        if (!words) return ~uint64_t(0);
        const int64_t first = block / 32;
        return words[first] | (first + 1 < count ? uint64_t(words[first + 1]) << 32 : 0);
    }
};

// Of scores [begin, end); begin is a multiple of 64. Without kDraw there is no noise, and no temperature.
// Scores that `mask` does not allow are not looked at.
template <bool kDraw>
BestToken best_token(const float* scores, int64_t begin, int64_t end, float temperature, const NoiseKey& key,
                     const TokenMask& mask) {
    constexpr float kLn2 = 0.69314718f;
    BestToken found;
    uint32_t odd = 0;
    for (int64_t block = begin; block < end; block += 64) {
        const uint64_t allowed = mask.of(block);
        if (!allowed) continue;  // most of what a grammar leaves
        alignas(64) float tail[64];
        const float* source = scores + block;
        if (end - block < 64) {
            std::fill(std::copy(source, scores + end, tail), tail + 64, -std::numeric_limits<float>::infinity());
            source = tail;
        }
        U16 words[4];
        if constexpr (kDraw) {
            uint32_t open = 0;  // most of what filters leave is excluded, whole blocks of it
            for (int part = 0; part < 4; ++part) {
                const F16 score = load(source + 16 * part);
                odd |= not_numbers(score) & uint32_t(allowed >> 16 * part & 0xFFFF);
                open |= above(score, splat(-std::numeric_limits<float>::infinity()));
            }
            if (!open) continue;
            philox(uint32_t(block / 4), key, words);
        }
        for (int part = 0; part < 4; ++part) {
            F16 score = load(source + 16 * part), most = score;
            if constexpr (kDraw) {
                score = score / splat(temperature);
                // 33 - exponent: once more than needed, which covers all rounding
                most = score + fma(exponents(words[part]), splat(-kLn2), splat(33 * kLn2));
            }
            const uint32_t open = uint32_t(allowed >> 16 * part & 0xFFFF);
            odd |= not_numbers(score) & open;
            uint32_t candidates = above(most, splat(found.best)) & open;
            if (!candidates) continue;
            alignas(64) float values[16];
            alignas(64) uint32_t bits[16];
            store(values, score);
            if constexpr (kDraw) store(bits, words[part]);
            for (; candidates; candidates &= candidates - 1) {
                const int lane = __builtin_ctz(candidates);
                const float value = kDraw ? values[lane] + gumbel(bits[lane]) : values[lane];
                if (value > found.best) found = {value, block + 16 * part + lane};
            }
        }
    }
    if (odd) found.best = std::numeric_limits<float>::quiet_NaN();
    return found;
}

// Tokens of lines [lines, vocab]: the first of the best; -1 where the best is not finite. `masks` [any, words] may be
// missing; line i has mask rows[i], or none where that is negative.
inline void choose_all(const float* scores, int64_t lines, int64_t vocab, const float* temperatures,
                       const int64_t* seeds, const int64_t* answers, const int64_t* positions, const uint32_t* masks,
                       const int64_t* rows, int64_t words, int64_t* tokens, int threads) {
    constexpr int64_t kPart = 16384;  // of a line, so that a single one keeps several threads busy
    const int64_t parts = (vocab + kPart - 1) / kPart;
    std::vector<BestToken> found(size_t(lines * parts));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < lines * parts; ++task) {
        const int64_t line = task / parts, begin = task % parts * kPart;
        const int64_t end = std::min(begin + kPart, vocab);
        const NoiseKey key{seeds[line], answers[line], positions[line]};
        const bool draws = temperatures[line] > 0.0f;
        const auto best = draws ? best_token<true> : best_token<false>;
        TokenMask mask;
        if (masks && rows[line] >= 0) mask = {masks + rows[line] * words, words};
        found[size_t(task)] = best(scores + line * vocab, begin, end, temperatures[line], key, mask);
    }
    for (int64_t line = 0; line < lines; ++line) {
        BestToken best;
        bool odd = false;
        for (int64_t part = 0; part < parts; ++part) {
            const BestToken& other = found[size_t(line * parts + part)];
            odd |= std::isnan(other.best);
            if (other.best > best.best) best = other;
        }
        tokens[line] = odd || !std::isfinite(best.best) ? -1 : best.token;
    }
}

// Scores [begin, end) of a line get -inf where `mask` has no bit; begin is a multiple of 32.
inline void exclude(float* scores, int64_t begin, int64_t end, const uint32_t* mask) {
    constexpr float kExcluded = -std::numeric_limits<float>::infinity();
    for (int64_t block = begin; block < end; block += 32) {
        const uint32_t allowed = mask[block / 32];
        const int64_t count = std::min<int64_t>(32, end - block);
        if (allowed == ~0u) continue;
        if (!allowed) {
            std::fill(scores + block, scores + block + count, kExcluded);
            continue;
        }
        for (int64_t i = 0; i < count; ++i)
            scores[block + i] = allowed >> i & 1 ? scores[block + i] : kExcluded;
    }
}

inline void exclude_all(float* scores, int64_t vocab, const int64_t* at, const uint32_t* masks, const int64_t* rows,
                        int64_t words, int64_t lines, int threads) {
    constexpr int64_t kPart = 16384;
    const int64_t parts = (vocab + kPart - 1) / kPart;
#pragma omp parallel for num_threads(threads)
    for (int64_t task = 0; task < lines * parts; ++task) {
        const int64_t line = task / parts, begin = task % parts * kPart;
        exclude(scores + at[line] * vocab, begin, std::min(begin + kPart, vocab), masks + rows[line] * words);
    }
}
