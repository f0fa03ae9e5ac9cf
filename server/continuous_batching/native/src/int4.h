// Products with weights of 4 bits (GPTQ): w[k, n] = scale[g, n] · (code[k, n] − zero[g, n]), g the group
// of input k.
//
// A stripe of 32 outputs is contiguous, as in layout.h: for each group of inputs 32 scales (float) and
// the codes (codes.h), then, if zero points are not all 8, for each group 32 bytes of zero point − 8.
// A few rows are multiplied with the whole numbers code − 8, and scale and zero point come in once a
// group: exact, and as fast as the codes can be read. For more rows a stripe is dequantised into T and
// multiplied as any other.
#pragma once

#include "codes.h"
#include "linear.h"
#include "scratch.h"

// A matrix as the Python side hands it over; group 0: numbers of type T packed as in layout.h.
struct Matrix {
    const void* data;
    const int32_t* order;  // place → input, for inputs that are not in the order of their groups; or null
    int32_t group;         // inputs that share a scale, a multiple of 32
    int32_t has_zeros;
};

struct Int4Weight {
    const uint8_t* data;
    int outputs, inputs, group;
    bool has_zeros;

    int stripes() const { return int(ceil_div(outputs, 32)); }
    int groups() const { return inputs / group; }
    int64_t group_size() const { return 128 + int64_t(group) * 16; }
    int64_t stripe_size() const { return groups() * (group_size() + (has_zeros ? 32 : 0)); }
    const uint8_t* stripe(int index) const { return data + index * stripe_size(); }
};

INLINE Int4Weight int4_weight(const Matrix& matrix, int outputs, int inputs) {
    return {static_cast<const uint8_t*>(matrix.data), outputs, inputs, matrix.group, matrix.has_zeros != 0};
}

// Walks the groups of a stripe.
struct GroupWalk {
    const uint8_t* group;
    const int8_t* zeros;  // null: all are 8
    int64_t size;

    GroupWalk(const Int4Weight& weight, int stripe)
        : group(weight.stripe(stripe)),
          zeros(weight.has_zeros ? (const int8_t*)(group + weight.groups() * weight.group_size()) : nullptr),
          size(weight.group_size()) {}

    INLINE F16 scale(int panel) const { return load((const float*)group + panel * 16); }
    INLINE F16 zero(int panel) const { return load_bytes(zeros + panel * 16); }
    INLINE const uint8_t* codes() const { return group + 128; }
    INLINE void next() {
        group += size;
        if (zeros) zeros += 32;
    }
};

// Tensors of a checkpoint that a weight is packed from.
struct Int4Source {
    const int32_t* words;    // [inputs / 8, columns], eight codes along the inputs
    const float* scales;     // [groups, columns]
    const uint8_t* zeros;    // [groups, columns]
    const int32_t* order;    // place → input
    const int32_t* outputs;  // place → column, -1: none, an output of zeros
    int64_t columns;
};

// Write one stripe at its place in weight.data.
inline void pack_int4_stripe(const Int4Source& source, const Int4Weight& weight, int stripe) {
    uint8_t* out = const_cast<uint8_t*>(weight.stripe(stripe));
    const int32_t* columns = source.outputs + stripe * 32;
    const auto code = [&](int place, int n) -> uint32_t {
        if (columns[n] < 0) return kCodesMiddle;
        const int input = source.order ? source.order[place] : place;
        return uint32_t(source.words[input / 8 * source.columns + columns[n]]) >> (input % 8 * 4) & 15;
    };
    for (int group = 0; group < weight.groups(); ++group) {
        const int64_t row = group * source.columns;
        for (int n = 0; n < 32; ++n, out += 4) {
            const float scale = columns[n] < 0 ? 0.0f : source.scales[row + columns[n]];
            std::memcpy(out, &scale, 4);
        }
        for (int k = group * weight.group; k < (group + 1) * weight.group; k += 4)
            for (int lane = 0; lane < 16; ++lane, out += 4) {
                uint32_t bits = 0;
                for (int i = 0; i < 4; ++i)
                    for (int panel = 0; panel < 2; ++panel)
                        bits |= code(k + i, lane + 16 * panel) << (16 * (i % 2) + 8 * (i / 2) + 4 * panel);
                std::memcpy(out, &bits, 4);
            }
    }
    if (!weight.has_zeros) return;
    for (int group = 0; group < weight.groups(); ++group)
        for (int n = 0; n < 32; ++n)
            *out++ = uint8_t(columns[n] < 0 ? 0 : source.zeros[group * source.columns + columns[n]] - kCodesMiddle);
}

// Call put(pairs, k, panel) for every two inputs k, k + 1 of a group and each panel.
template <class Put>
INLINE void each_pair(const uint8_t* codes, int group, const Put& put) {
    for (int k = 0; k < group; k += 4, codes += kCodesVector) {
        put(unpack_codes<0>(codes), k, 0);
        put(unpack_codes<1>(codes), k, 1);
        put(unpack_codes<2>(codes), k + 2, 0);
        put(unpack_codes<3>(codes), k + 2, 1);
    }
}

// Where inputs k, k + 1 of a panel lie in a packed stripe.
template <class T>
INLINE T* place_of(T* stripe, int k, int panel) {
    return stripe + (k / kDepth<T> * 2 + panel) * kTile<T> + k % kDepth<T> * 16;
}
INLINE void put_inputs(bf16* place, F16 first, F16 second) { store_pairs(place, first, second); }
INLINE void put_inputs(float* place, F16 first, F16 second) {
    store(place, first);
    store(place + 16, second);
}

// Write a stripe as numbers of type T, as pack_stripe() would.
template <class T>
void dequantise_stripe(const Int4Weight& weight, int stripe, T* target) {
    GroupWalk walk(weight, stripe);
    for (int first = 0; first < weight.inputs; first += weight.group, walk.next()) {
        F16 scale[2], offset[2];
        for (int p = 0; p < 2; ++p) {
            scale[p] = walk.scale(p);
            offset[p] = walk.zeros ? splat(0.0f) - walk.zero(p) * scale[p] : splat(0.0f);
        }
        each_pair(walk.codes(), weight.group, [&](CodePairs pairs, int k, int panel) {
            put_inputs(place_of(target, first + k, panel), fma(first_of(pairs), scale[panel], offset[panel]),
                       fma(second_of(pairs), scale[panel], offset[panel]));
        });
    }
}

// Up to so many rows are multiplied with codes in registers; up to kGroupRows with whole numbers of type
// T, a group at a time; for more, a stripe is dequantised.
constexpr int kCodeRows = kKernelRows / 4;
constexpr int kGroupRows = 32;

// `R` rows from `x` on with one stripe: c [R][32]. sums [rows][groups]: what the inputs of a group add
// up to, for weights with zero points.
template <int R, class T>
void multiply_codes(const Int4Weight& weight, int stripe, const T* x, const float* sums, float* c) {
    F16 total[R][2];
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = splat(0.0f);
    GroupWalk walk(weight, stripe);
    const int groups = weight.groups();
    for (int g = 0; g < groups; ++g, walk.next()) {
        F16 part[R][4];  // four sums, so that one need not wait for the last
        for (int r = 0; r < R; ++r) part[r][0] = part[r][1] = part[r][2] = part[r][3] = splat(0.0f);
        const uint8_t* codes = walk.codes();
        for (int k = 0; k < weight.group; k += kDepth<T>, x += kTile<T>)
            for (int i = 0; i < kDepth<T>; i += 4, codes += kCodesVector) {
                const CodePairs quarters[4] = {unpack_codes<0>(codes), unpack_codes<1>(codes),
                                               unpack_codes<2>(codes), unpack_codes<3>(codes)};
                for (int q = 0; q < 4; ++q)
                    for (int r = 0; r < R; ++r)
                        part[r][q] = dot_codes(part[r][q], x + r * kDepth<T> + i + q / 2 * 2, quarters[q]);
            }
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < 2; ++p) {
                F16 product = part[r][p] + part[r][p + 2];
                if (walk.zeros) product = product - walk.zero(p) * splat(sums[r * groups + g]);
                total[r][p] = fma(product, walk.scale(p), total[r][p]);
            }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < 2; ++p) store(c + r * 32 + p * 16, total[r][p]);
}

// As above, for up to kGroupRows rows; numbers: memory for one group of a stripe.
template <class T>
void multiply_groups(const Int4Weight& weight, int stripe, PackedRows<T> x, int rows, const float* sums, T* numbers,
                     float* c) {
    alignas(64) float part[kGroupRows * 32];
    const int groups = weight.groups(), tiles = weight.group / kDepth<T>;
    const int64_t stride = int64_t(x.depth_tiles) * kTile<T>;
    std::memset(c, 0, size_t(rows) * 32 * sizeof(float));
    GroupWalk walk(weight, stripe);
    for (int g = 0; g < groups; ++g, walk.next()) {
        each_pair(walk.codes(), weight.group, [&](CodePairs pairs, int k, int panel) {
            store_codes(place_of(numbers, k, panel), pairs);
        });
        multiply(x.at(0, g * weight.group), stride, numbers, tiles, rows, false, Fetch{nullptr, 0}, part);
        for (int p = 0; p < 2; ++p) {
            const F16 scale = walk.scale(p), zero = walk.zeros ? walk.zero(p) : splat(0.0f);
            for (int r = 0; r < rows; ++r) {
                F16 product = load(part + r * 32 + p * 16);
                if (walk.zeros) product = product - zero * splat(sums[r * groups + g]);
                store(c + r * 32 + p * 16, fma(product, scale, load(c + r * 32 + p * 16)));
            }
        }
    }
}

template <class T>
void sum_groups(const Int4Weight& weight, PackedRows<T> x, int rows, float* sums) {
    for (int row = 0; row < rows; ++row)
        for (int g = 0; g < weight.groups(); ++g) {
            F16 total = splat(0.0f);
            for (int k = g * weight.group; k < (g + 1) * weight.group; k += 16) total = total + load(x.at(row, k));
            *sums++ = sum(total);
        }
}

// As linear() with plain weights; each thread brings its own scratch.
template <class T, class Finish>
void linear(Member& me, PackedRows<T> x, int rows, const Int4Weight& weight, Scratch& scratch, const Finish& finish) {
    const int groups = weight.groups(), span = rows > kGroupRows ? weight.inputs : weight.group;
    T* numbers = reinterpret_cast<T*>(scratch.floats(size_t(span) * 32 + size_t(kGroupRows) * groups));
    if (rows > kGroupRows) {
        linear_passes(me, x, rows, weight.stripes(), finish, [&](int index) {
            dequantise_stripe(weight, index, numbers);
            return numbers;
        });
        return;
    }
    float* sums = reinterpret_cast<float*>(numbers + size_t(span) * 32);
    if (weight.has_zeros) sum_groups(weight, x, rows, sums);
    me.share(weight.stripes(), [&](int index) {
        alignas(64) float c[kGroupRows * 32];
        if (rows > kCodeRows)
            multiply_groups(weight, index, x, rows, sums, numbers, c);
        else if (rows == 2)
            multiply_codes<2>(weight, index, x.at(0, 0), sums, c);
        else
            multiply_codes<1>(weight, index, x.at(0, 0), sums, c);
        finish(0, rows, index, c);
    });
}
