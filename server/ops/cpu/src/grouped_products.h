// Products with weights of small codes (grouped.h), activations in T or rounded to bytes.
//
// A group's products are added up with the codes less their middle; its scale and its offset come in once.
// A row's sums have the same order however many rows there are.
#pragma once

#include "grouped.h"

#ifdef __AVX512F__
constexpr int kCodeRows = 8;  // whose sums fit in the registers
#else
constexpr int kCodeRows = 2;
#endif
// From this number of rows on, codes are written as numbers of type T once, not read anew for every few rows.
constexpr int kReadyRows = 4 * kCodeRows;
// How far ahead of their use codes are fetched, at least: by whole units, so that no line is left out.
#ifdef __AMX_BF16__
constexpr int64_t kAheadBytes = 3072;
#else
constexpr int64_t kAheadBytes = 9000;
#endif

template <class Body>
INLINE void each_quad(const Body& body) {
    body.template operator()<0>();
    body.template operator()<1>();
    body.template operator()<2>();
    body.template operator()<3>();
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

// A product with activations in T. What a product is, here and below, is that of rows from a first one on: from()
// moves there.
template <class T>
struct NumberInputs {
    using Sum = F16;
    static constexpr int kRows = kCodeRows;
    static constexpr int kGroups = 2;  // of one row, side by side: a sum need not wait for its last step
    PackedRows<T> x;
    const float* sums;  // [rows][groups] of the inputs; null: there are no offsets
    int groups;
    float unit;  // of what is added up

    NumberInputs rows_from(int row) const {
        return {{x.at(row, 0), x.depth_tiles}, sums ? sums + int64_t(row) * groups : nullptr, groups, unit};
    }
    template <int R>
    INLINE void begin(int, F16 (&sum)[R][2]) const {
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = splat(0.0f);
    }
    template <int R>
    INLINE void add(const T* inputs, CodePairs first, CodePairs second, F16 (&sum)[R][2]) const {
        for (int r = 0; r < R; ++r) {
            sum[r][0] = dot_codes(sum[r][0], inputs + r * kDepth<T>, first);
            sum[r][1] = dot_codes(sum[r][1], inputs + r * kDepth<T>, second);
        }
    }
    INLINE F16 fold_one(F16 sum, F16 scale, F16 offset, int r, int g, F16 total) const {
        total = fma(sum, scale * splat(unit), total);
        return sums ? fma(offset, splat(sums[r * groups + g]), total) : total;
    }
    template <int R>
    INLINE void fold(const F16 (&sum)[R][2], const GroupScales& scales, int g, F16 (&total)[R][2]) const {
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < 2; ++p)
                total[r][p] = fold_one(sum[r][p], scales.scale[p], scales.offset[p], r, g, total[r][p]);
    }
};

// The same with codes in registers.
template <class T, int kBits>
struct CodeProduct : NumberInputs<T> {
    CodeProduct from(int row) const { return {this->rows_from(row)}; }
    static constexpr int kChunkBytes = chunk_bytes(kBits);

    template <int R>
    INLINE void chunk(const uint8_t* codes, int k, F16 (&sum)[R][2]) const {
        const T* inputs = this->x.at(0, k);
        each_quad([&]<int kQuad>() {
            const Quad first = quad_of<kBits, kQuad, 0>(codes), second = quad_of<kBits, kQuad, 1>(codes);
            this->add(inputs + 4 * kQuad, pair_of<kBits, 0>(first), pair_of<kBits, 0>(second), sum);
            this->add(inputs + 4 * kQuad + 2, pair_of<kBits, 1>(first), pair_of<kBits, 1>(second), sum);
        });
    }
};

// The same with codes that are numbers already: [quad][pair][panel][16 outputs × 2].
template <class T>
struct ReadyProduct : NumberInputs<T> {
    ReadyProduct from(int row) const { return {this->rows_from(row)}; }
    static constexpr int kChunkBytes = 32 * kChunk * int(sizeof(T));

    template <int kBits>
    static void make(const uint8_t* codes, uint8_t* ready) {
        T* out = reinterpret_cast<T*>(ready);
        each_quad([&]<int kQuad>() {
            const Quad first = quad_of<kBits, kQuad, 0>(codes), second = quad_of<kBits, kQuad, 1>(codes);
            store_codes(out + (4 * kQuad + 0) * 32, pair_of<kBits, 0>(first));
            store_codes(out + (4 * kQuad + 1) * 32, pair_of<kBits, 0>(second));
            store_codes(out + (4 * kQuad + 2) * 32, pair_of<kBits, 1>(first));
            store_codes(out + (4 * kQuad + 3) * 32, pair_of<kBits, 1>(second));
        });
    }

    template <int R>
    INLINE void chunk(const uint8_t* ready, int k, F16 (&sum)[R][2]) const {
        const T *inputs = this->x.at(0, k), *numbers = reinterpret_cast<const T*>(ready);
#pragma GCC unroll 8
        for (int pair = 0; pair < kChunk / 2; ++pair) this->add_ready(inputs + 2 * pair, numbers + pair * 64, sum);
    }

   private:
    template <int R>
    INLINE void add_ready(const bf16* inputs, const bf16* numbers, F16 (&sum)[R][2]) const {
        this->add(inputs, load_codes(numbers), load_codes(numbers + 32), sum);
    }
    template <int R>
    INLINE void add_ready(const float* inputs, const float* numbers, F16 (&sum)[R][2]) const {
        for (int i = 0; i < 2; ++i)
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < 2; ++p)
                    sum[r][p] = fma(splat(inputs[r * kDepth<float> + i]), load(numbers + p * 32 + i * 16), sum[r][p]);
    }
};

// A product of bytes; R rows are a block of them.
template <int kBits>
struct ByteProduct {
    using Sum = I16;
    static constexpr int kRows = kByteRows;
    static constexpr int kGroups = 1;  // whole numbers wait less than memory does, which is read best in order
    static constexpr int kChunkBytes = chunk_bytes(kBits);
    ByteRows x;
    bool has_offsets;

    ByteProduct from(int row) const {
        ByteProduct there = *this;
        const int64_t place = x.place(row, 0);
        there.x.codes = x.quad(row, 0);
        there.x.scales += place, there.x.sums += place, there.x.starts += place;
        return there;
    }
    template <int R>
    INLINE void begin(int g, I16 (&sum)[R][2]) const {
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = splat_int(x.starts[g * R + r]);
    }
    template <int R>
    INLINE void chunk(const uint8_t* codes, int k, I16 (&sum)[R][2]) const {
        const int8_t* inputs = x.codes + k * R;
        each_quad([&]<int kQuad>() {
            const Quad first = quad_of<kBits, kQuad, 0>(codes), second = quad_of<kBits, kQuad, 1>(codes);
            for (int r = 0; r < R; ++r) {
                const int8_t* four = inputs + (kQuad * R + r) * 4;
                sum[r][0] = dot_bytes(sum[r][0], first, four);
                sum[r][1] = dot_bytes(sum[r][1], second, four);
            }
        });
    }
    template <int R>
    INLINE void fold(const I16 (&sum)[R][2], const GroupScales& scales, int g, F16 (&total)[R][2]) const {
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < 2; ++p) {
                const int at = g * R + r;
                total[r][p] = fma(to_float(sum[r][p]), scales.scale[p] * splat(x.scales[at]), total[r][p]);
                if (has_offsets) total[r][p] = fma(scales.offset[p], splat(x.sums[at]), total[r][p]);
            }
    }
};

// Add the products of `R` rows with groups [begin, end) of a stripe to c [R][32]. `chunks` are those of
// the groups where they are not the codes themselves. `N` groups go side by side.
template <int R, int N, class Product>
INLINE void multiply_groups(const Product& product, const CodesForm& form, const uint8_t* stripe, const uint8_t* chunks,
                            int begin, int end, bool fetch, float* c) {
    const int64_t size = form.group / kChunk * Product::kChunkBytes, units = N * form.unit_size();
    const int64_t ahead = ceil_div(kAheadBytes, units) * units;
    GroupWalk walk(form, stripe, begin);
    F16 total[R][2];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < 2; ++p) total[r][p] = load(c + r * 32 + p * 16);
    const auto take = [&]<int kCount>(int g) __attribute__((always_inline)) {
        typename Product::Sum sum[kCount][R][2];
        GroupScales scales[kCount];
        const uint8_t* at[kCount];
        for (int n = 0; n < kCount; ++n, walk.next()) {
            at[n] = chunks ? chunks + (g + n - begin) * size : walk.codes();
            scales[n] = walk.scales();
            if (fetch) walk.fetch_scales(ahead);
            product.begin(g + n, sum[n]);
        }
        for (int k = 0; k < form.group; k += kChunk)
            for (int n = 0; n < kCount; ++n) {
                if (fetch)
                    for (int line = 0; line < Product::kChunkBytes; line += 64) prefetch_far(at[n] + ahead + line);
                product.chunk(at[n], (g + n) * form.group + k, sum[n]);
                at[n] += Product::kChunkBytes;
            }
        for (int n = 0; n < kCount; ++n) product.fold(sum[n], scales[n], g + n, total);
    };
    int g = begin;
    for (; g + N <= end; g += N) take.template operator()<N>(g);
    for (; g < end; ++g) take.template operator()<1>(g);
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < 2; ++p) store(c + r * 32 + p * 16, total[r][p]);
}

// As above, for any number of rows; what it computes beyond `rows` belongs to nobody.
template <class Product>
void multiply_rows_of_codes(const Product& product, const CodesForm& form, const uint8_t* stripe,
                            const uint8_t* chunks, int begin, int end, int first, int rows, bool fetch, float* c) {
    constexpr int kRows = Product::kRows;
    for (int row = 0; row < rows; row += kRows, fetch = false) {
        const int left = rows - row;
        const Product part = product.from(first + row);
        float* out = c + row * 32;
        if (left == 1)
            multiply_groups<1, Product::kGroups>(part, form, stripe, chunks, begin, end, fetch, out);
        else if (left == 2 || kRows == 2)
            multiply_groups<2, 1>(part, form, stripe, chunks, begin, end, fetch, out);
        else if (left <= 4)
            multiply_groups<std::min(4, kRows), 1>(part, form, stripe, chunks, begin, end, fetch, out);
        else
            multiply_groups<kRows, 1>(part, form, stripe, chunks, begin, end, fetch, out);
    }
}

// Rows from `first` on with a stripe of codes: c [rows to the next 8][32].
template <class Product>
void multiply_stripe(const Product& product, const CodesForm& form, const uint8_t* stripe, int inputs, int first,
                     int rows, float* c) {
    const int groups = inputs / form.group, block = rows <= Product::kRows ? groups : std::max(1, kBlockInputs / form.group);
    for (int g = 0; g < groups; g += block)
        multiply_rows_of_codes(product, form, stripe, nullptr, g, std::min(groups, g + block), first, rows, true, c);
}

// The same, with the codes of some groups at a time written as numbers to `ready`, memory for kBlockInputs of them.
template <int kBits, class T>
void multiply_ready(const ReadyProduct<T>& product, const CodesForm& form, const uint8_t* stripe, int inputs, int first,
                    int rows, uint8_t* ready, float* c) {
    const int groups = inputs / form.group, block = std::max(1, kBlockInputs / form.group);
    for (int g = 0; g < groups; g += block) {
        const int end = std::min(groups, g + block);
        GroupWalk walk(form, stripe, g);
        uint8_t* out = ready;
        for (int i = g; i < end; ++i, walk.next())
            for (int k = 0; k < form.group; k += kChunk, out += ReadyProduct<T>::kChunkBytes)
                ReadyProduct<T>::template make<kBits>(walk.codes() + k / kChunk * chunk_bytes(kBits), out);
        multiply_rows_of_codes(product, form, stripe, ready, g, end, first, rows, false, c);
    }
}
