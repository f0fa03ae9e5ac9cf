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
INLINE I16 to_whole(F16 x) { return {_mm512_cvtps_epi32(x.v)}; }  // of whole numbers
INLINE I16 operator+(I16 a, I16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
INLINE int32_t sum(I16 x) { return _mm512_reduce_add_epi32(x.v); }

// Four quads of bytes, each in the order of codes.h.
INLINE void store_quads(int32_t* quads, I16 x) {
    const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
    _mm_storeu_si128((__m128i*)quads, _mm_shuffle_epi8(_mm512_cvtepi32_epi8(x.v), order));
}

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
INLINE I16 to_whole(F16 x) { return {__builtin_convertvector(x.a, HalfInt), __builtin_convertvector(x.b, HalfInt)}; }
INLINE I16 operator+(I16 a, I16 b) { return {a.a + b.a, a.b + b.b}; }
INLINE int32_t sum(I16 x) {
    const HalfInt both = x.a + x.b;
    int32_t total = 0;
    for (int i = 0; i < 8; ++i) total += both[i];
    return total;
}
INLINE void store_quads(int32_t* quads, I16 x) {
    int8_t bytes[16];
    for (int i = 0; i < 16; i += 4) {
        const auto at = [&](int j) { return int8_t(i < 8 ? x.a[i + j] : x.b[i - 8 + j]); };
        bytes[i] = at(0), bytes[i + 1] = at(2), bytes[i + 2] = at(1), bytes[i + 3] = at(3);
    }
    std::memcpy(quads, bytes, 16);
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

#ifdef __AVX512F__
constexpr int kByteRows = 4;  // whose sums of a group and of all groups fit in the registers
#else
constexpr int kByteRows = 2;
#endif

// Activations as whole numbers from −127 to 127 with a scale for each row and group of inputs.
//
// Rows come in blocks of kByteRows, the last ones in a block of 1, 2 or 4. Of a block the four bytes of each quad of
// inputs (codes.h) lie side by side, and so do the numbers of each group.
struct ByteRows {
    int8_t* codes;    // for each block [inputs / 4][height][4]
    float* scales;    // for each block [groups][height]
    float* sums;      // likewise: of the group's inputs, before they are rounded
    int32_t* starts;  // likewise: what a dot product begins with, − middle · sum of the bytes
    int rows, inputs, group, groups;

    // Bytes of memory for so many rows, a multiple of 64.
    static int64_t size(int64_t rows, int64_t inputs, int64_t group) {
        const int64_t padded = ceil_div(rows, kByteRows) * kByteRows;
        return ceil_div(padded * inputs, 64) * 64 + 3 * ceil_div(padded * (inputs / group) * 4, 64) * 64;
    }
    static ByteRows at(uint8_t* memory, int64_t rows, int inputs, int group) {
        const int64_t padded = ceil_div(rows, kByteRows) * kByteRows;
        const int64_t bytes = ceil_div(padded * inputs, 64) * 64, numbers = padded * (inputs / group);
        float* floats = reinterpret_cast<float*>(memory + bytes);
        const int64_t step = ceil_div(numbers * 4, 64) * 16;
        return {reinterpret_cast<int8_t*>(memory), floats, floats + step, reinterpret_cast<int32_t*>(floats + 2 * step),
                int(rows), inputs, group, inputs / group};
    }

    // The block of a row, from its first row on.
    static int block(int row) { return row / kByteRows * kByteRows; }
    int height(int row) const {
        const int left = rows - block(row);
        return left == 1 ? 1 : left == 2 ? 2 : kByteRows;
    }
    int8_t* quad(int row, int input) const {
        return codes + int64_t(block(row)) * inputs + (input / 4 * height(row) + row % kByteRows) * 4;
    }
    int64_t place(int row, int g) const {
        return int64_t(block(row)) * groups + g * height(row) + row % kByteRows;
    }
};

// Round one row to bytes. What is no number makes the scale of its group none, so that it does not get lost.
template <class T>
void quantize_row(PackedRows<T> x, int row, int middle, const ByteRows& y) {
    const int height = y.height(row);
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
        I16 total = splat_int(0);
        for (int k = g * y.group; k < (g + 1) * y.group; k += 16) {
            const F16 nearest = round(load(x.at(row, k)) * inverse);
            const I16 whole = to_whole(min(max(nearest, splat(-127.0f)), splat(127.0f)));
            int32_t quads[4];
            store_quads(quads, whole);
            total = total + whole;
            int8_t* quad = y.quad(row, k);
            for (int i = 0; i < 4; ++i, quad += 4 * height) std::memcpy(quad, &quads[i], 4);
        }
        const int64_t at = y.place(row, g);
        y.scales[at] = scale;
        y.sums[at] = sum(all);
        y.starts[at] = -middle * sum(total);
    }
}
