// Dot products of bytes, and activations as bytes.
#pragma once

#include "codes.h"
#include "layout.h"

// Sixteen whole numbers.
#ifdef __AVX512BW__

struct I16 {
    __m512i v;
};

INLINE I16 splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
INLINE F16 to_float(I16 x) { return {_mm512_cvtepi32_ps(x.v)}; }

// sum + the four products of each lane; x [4] signed, the same for all lanes
INLINE I16 dot_bytes(I16 sum, Quad codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    const __m512i inputs = _mm512_set1_epi32(four);
#ifdef __AVX512VNNI__
    return {_mm512_dpbusd_epi32(sum.v, codes.v, inputs)};
#else  // as words, of which no sum of two products overflows
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(codes.v, _mm512_set1_epi16(255)),
                                           _mm512_srai_epi16(_mm512_slli_epi16(inputs, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(codes.v, 8), _mm512_srai_epi16(inputs, 8));
    return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
#endif
}

#else

struct I16 {
    HalfInt a, b;
};

INLINE I16 splat_int(int32_t x) { return {HalfInt{} + x, HalfInt{} + x}; }
INLINE F16 to_float(I16 x) {
    return {__builtin_convertvector(x.a, Half), __builtin_convertvector(x.b, Half)};
}

#if defined(__AVX2__)
INLINE HalfInt dot_half(HalfInt sum, HalfBits codes, __m256i inputs) {
#if defined(__AVXVNNI__)
    return (HalfInt)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, inputs);
#else
    const __m256i words = (__m256i)codes;
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(words, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(inputs, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(words, 8), _mm256_srai_epi16(inputs, 8));
    return sum + (HalfInt)even + (HalfInt)odd;
#endif
}
INLINE I16 dot_bytes(I16 sum, Quad codes, const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    const __m256i inputs = _mm256_set1_epi32(four);
    return {dot_half(sum.a, codes.a, inputs), dot_half(sum.b, codes.b, inputs)};
}
#else
INLINE I16 dot_bytes(I16 sum, Quad codes, const int8_t* x) {
    for (int i = 0; i < 4; ++i) {
        sum.a += (HalfInt)((codes.a >> (8 * i)) & 255) * x[i];
        sum.b += (HalfInt)((codes.b >> (8 * i)) & 255) * x[i];
    }
    return sum;
}
#endif

#endif

// Activations as whole numbers from −127 to 127 with a scale for each row and group of inputs.
//
// Rows come in blocks of `height`; of a block the four bytes of each quad of inputs (codes.h) lie side by side, and
// so do the numbers of each group.
struct ByteRows {
    int8_t* codes;    // [rows / height][inputs / 4][height][4]
    float* scales;    // [rows / height][groups][height]
    float* sums;      // likewise: of the group's inputs, before they are rounded
    int32_t* starts;  // likewise: what a dot product begins with, − middle · sum of the bytes
    int inputs, group, groups, height;

    static constexpr int kMostHeight = 8;
    static int height_for(int rows) {
        int height = 1;
        while (height < rows && height < kMostHeight) height *= 2;
        return height;
    }
    // Bytes of memory for so many rows, a multiple of 64.
    static int64_t size(int64_t rows, int64_t inputs, int64_t group) {
        const int64_t padded = ceil_div(rows, kMostHeight) * kMostHeight;
        return ceil_div(padded * inputs, 64) * 64 + 3 * ceil_div(padded * (inputs / group) * 4, 64) * 64;
    }
    static ByteRows at(uint8_t* memory, int64_t rows, int inputs, int group) {
        const int64_t padded = ceil_div(rows, kMostHeight) * kMostHeight;
        const int64_t bytes = ceil_div(padded * inputs, 64) * 64, numbers = padded * (inputs / group);
        float* floats = reinterpret_cast<float*>(memory + bytes);
        const int64_t step = ceil_div(numbers * 4, 64) * 16;
        return {reinterpret_cast<int8_t*>(memory), floats, floats + step, reinterpret_cast<int32_t*>(floats + 2 * step),
                inputs, group, inputs / group, height_for(int(rows))};
    }

    int8_t* quad(int row, int input) const {
        return codes + (int64_t(row / height) * (inputs / 4) + input / 4) * height * 4 + row % height * 4;
    }
    int64_t place(int row, int g) const { return (int64_t(row / height) * groups + g) * height + row % height; }
};

// Round one row to bytes. What is no number makes the scale of its group none, so that it does not get lost.
template <class T>
void quantize_row(PackedRows<T> x, int row, int middle, const ByteRows& y) {
    for (int g = 0; g < y.groups; ++g) {
        F16 most = splat(0.0f), spoilt = splat(0.0f), all = splat(0.0f);
        for (int k = g * y.group; k < (g + 1) * y.group; k += 16) {
            const F16 value = load(x.at(row, k));
            most = max(most, max(value, splat(0.0f) - value));
            spoilt = fma(value, splat(0.0f), spoilt);
            all = all + value;
        }
        const float greatest = maximum(most), scale = greatest / 127.0f + sum(spoilt);  // no number where x has one
        const F16 inverse = splat(greatest > 1e-30f && scale < 1e30f ? 127.0f / greatest : 0.0f);
        int32_t total = 0;
        for (int k = g * y.group; k < (g + 1) * y.group; k += 16) {
            alignas(64) float rounded[16];
            store(rounded, min(max(round(load(x.at(row, k)) * inverse), splat(-127.0f)), splat(127.0f)));
            int8_t bytes[16];
            for (int i = 0; i < 16; ++i) bytes[i] = int8_t(rounded[i]);
            for (int i = 0; i < 16; ++i) total += bytes[i];
            int8_t* quad = y.quad(row, k);
            for (int i = 0; i < 16; i += 4, quad += 4 * y.height) {
                quad[0] = bytes[i], quad[1] = bytes[i + 2], quad[2] = bytes[i + 1], quad[3] = bytes[i + 3];
            }
        }
        const int64_t at = y.place(row, g);
        y.scales[at] = scale;
        y.sums[at] = sum(all);
        y.starts[at] = -middle * total;
    }
}
