// Products with weights of 4 bits (GPTQ): w[k, n] = scale[g, n] · (code[k, n] − zero[g, n]), g the group
// of input k.
//
// A stripe of 32 outputs is contiguous, as in layout.h: for each group of inputs 32 scales (float) and
// the codes (codes.h), then, if zero points are not all 8, for each group 32 bytes of zero point − 8.
// Rows are multiplied with the whole numbers code − 8, exact in T, and scale and zero point come in once a
// group. A row's sums have the same order however many rows there are.
#pragma once

#include <utility>

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
    constexpr int step = kDepth<T> / 16;
    return stripe + k / kDepth<T> * 2 * kTile<T> + panel * kPanelStride<T> + k % kDepth<T> / step * kStepStride<T>;
}

// Up to this number of rows is multiplied with codes in registers; for more, the codes of a group are written as
// numbers of type T. Tile registers take numbers only, and sum in an order of their own.
#ifdef __AMX_BF16__
template <class T>
constexpr int kCodeRows = sizeof(T) == 2 ? 0 : kKernelRows / 4;
#else
template <class T>
constexpr int kCodeRows = kKernelRows / 4;
#endif

// How a group's products come in for the 32 outputs of a stripe.
struct GroupScales {
    F16 scale[2], zero[2];
    bool has_zeros;

    INLINE explicit GroupScales(const GroupWalk& walk) : has_zeros(walk.zeros != nullptr) {
        for (int p = 0; p < 2; ++p) {
            scale[p] = walk.scale(p);
            zero[p] = has_zeros ? walk.zero(p) : splat(0.0f);
        }
    }
    // total + scale · (product − zero · sum of the inputs); *sum is read only where there are zero points
    INLINE F16 add(int panel, F16 product, const float* sum, F16 total) const {
        if (has_zeros) product = product - zero[panel] * splat(*sum);
        return fma(product, scale[panel], total);
    }
};

// The products of `R` rows from `x` on with the codes of `N` groups, `size` bytes apart: part [N][R][panel].
// Groups go side by side so that a sum need not wait for its last step.
template <int R, int N, class T>
INLINE void multiply_code_groups(const uint8_t* codes, int64_t size, int group, const T* x, F16 (&part)[N][R][2]) {
    const int64_t tiles = group / kDepth<T>;
    for (int n = 0; n < N; ++n)
        for (int r = 0; r < R; ++r) part[n][r][0] = part[n][r][1] = splat(0.0f);
    for (int k = 0; k < tiles; ++k, x += kTile<T>)
#pragma GCC unroll 2
        for (int i = 0; i < kDepth<T>; i += 4, codes += kCodesVector) {
            const auto add_quarter = [&]<int kQuarter>() {
#pragma GCC unroll 2
                for (int n = 0; n < N; ++n) {  // the sums stay in registers
                    const CodePairs pairs = unpack_codes<kQuarter>(codes + n * size);
                    const T* inputs = x + n * tiles * kTile<T> + i + kQuarter / 2 * 2;
                    for (int r = 0; r < R; ++r)
                        part[n][r][kQuarter % 2] = dot_codes(part[n][r][kQuarter % 2], inputs + r * kDepth<T>, pairs);
                }
            };
            add_quarter.template operator()<0>();
            add_quarter.template operator()<1>();
            add_quarter.template operator()<2>();
            add_quarter.template operator()<3>();
        }
}

// `R` rows from `x` on with one stripe: c [R][32]. sums [rows][groups].
template <int R, class T>
void multiply_codes(const Int4Weight& weight, int stripe, const T* x, const float* sums, float* c) {
    F16 total[R][2];
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = splat(0.0f);
    GroupWalk walk(weight, stripe);
    const int groups = weight.groups();
    const auto take = [&]<int N>(int g) {
        F16 part[N][R][2];
        multiply_code_groups<R, N>(walk.codes(), walk.size, weight.group, x, part);
        for (int n = 0; n < N; ++n, walk.next()) {
            const GroupScales scales(walk);
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < 2; ++p)
                    total[r][p] = scales.add(p, part[n][r][p], sums + r * groups + g + n, total[r][p]);
        }
        x += N * (weight.group / kDepth<T>) * kTile<T>;
    };
    int g = 0;
    for (; g + 2 <= groups; g += 2) take.template operator()<2>(g);
    if (g < groups) take.template operator()<1>(g);
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < 2; ++p) store(c + r * 32 + p * 16, total[r][p]);
}

// As above, for any number of rows, from row `begin` on. numbers: memory for one group of a stripe; part,
// c: [rows to the next 32][32].
template <class T>
void multiply_groups(const Int4Weight& weight, int stripe, PackedRows<T> x, int begin, int rows, const float* sums,
                     T* numbers, float* part, float* c) {
    const int groups = weight.groups(), tiles = weight.group / kDepth<T>;
    const int block = rows <= 32 ? tiles : std::min(tiles, kDepthBlock);
    const int64_t stride = int64_t(x.depth_tiles) * kTile<T>;
    std::memset(c, 0, size_t(ceil_div(rows, 32)) * 32 * 32 * sizeof(float));
    GroupWalk walk(weight, stripe);
    for (int g = 0; g < groups; ++g, walk.next()) {
        each_pair(walk.codes(), weight.group, [&](CodePairs pairs, int k, int panel) {
            store_codes(place_of(numbers, k, panel), pairs);
        });
        const GroupScales scales(walk);
        for (int k = 0; k < tiles; k += block) {
            const int depth = std::min(block, tiles - k);
            for (int row = 0; row < rows; row += 32) {
                const T* inputs = x.at(begin + row, g * weight.group + k * kDepth<T>);
                const T* weights = numbers + k * 2 * kTile<T>;
                const int count = std::min(32, rows - row);
                float* product = part + (block < tiles ? row * 32 : 0);
                const float* sum = sums + int64_t(begin + row) * groups + g;
                float* total = c + row * 32;
                if (k + depth < tiles)
                    multiply(inputs, stride, weights, depth, count, k > 0, Fetch{nullptr, 0}, product);
                else
                    multiply_then(inputs, stride, weights, depth, count, k > 0, Fetch{nullptr, 0}, product,
                                  [&](int r, int p, F16 value) {
                                      float* out = total + r * 32 + p * 16;
                                      store(out, scales.add(p, value, sum + r * groups, load(out)));
                                  });
            }
        }
    }
}

// sums [rows][groups]
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
    if (rows == 0) return;
    const Passes passes(rows, x.depth_tiles);
    const size_t tile = size_t(ceil_div(passes.rows, 32)) * 32 * 32, numbers = size_t(weight.group) * 32;
    float* c = scratch.floats(2 * tile + numbers + (weight.has_zeros ? size_t(rows + 32) * weight.groups() : 0));
    float *part = c + tile, *group = part + tile, *sums = group + numbers;
    if (weight.has_zeros) sum_groups(weight, x, rows, sums);
    me.share(passes.count * weight.stripes(), [&](int task) {
        const int begin = task / weight.stripes() * passes.rows, index = task % weight.stripes();
        const int count = std::min(passes.rows, rows - begin);
        bool done = false;
        [&]<int... R>(std::integer_sequence<int, R...>) {
            ((rows == R + 1 && (multiply_codes<R + 1>(weight, index, x.at(0, 0), sums, c), done = true)), ...);
        }(std::make_integer_sequence<int, kCodeRows<T>>());
        if (!done) multiply_groups(weight, index, x, begin, count, sums, reinterpret_cast<T*>(group), part, c);
        finish(begin, count, index, c);
    });
}
