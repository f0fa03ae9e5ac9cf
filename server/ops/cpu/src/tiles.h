// Products of tiles: up to 32 rows of activations with one stripe of weights.
//
// multiply() leaves or adds to C [32][32] floats: rows of activations × outputs of the stripe, over
// `depth` tiles; `stride` is how far (in numbers) the second 16 rows are from the first. There is one
// for AMX (bf16) and one for vectors (bf16 or float); both read the layouts of layout.h. In both, a row's
// sums have the same order however many rows there are.
// multiply_then() gives what would be left there to put(row, panel, sixteen outputs) instead; C may be overwritten.
#pragma once

#include "layout.h"

// Memory that is brought into the second-level cache meanwhile: so many bytes with every depth tile.
struct Fetch {
    const char* next;
    int bytes;

    INLINE void tile() {
        for (int i = 0; i < bytes; i += 64, next += 64) prefetch_far(next);
    }
    // A sixteenth of that. Fetching goes on line by line between the products: a processor can wait for a few dozen
    // lines only, and does nothing else while it waits for room for the next one.
    INLINE void step() {
        prefetch_far(next);
        if (bytes > 16 * 64) prefetch_far(next + 64);
        next += bytes / 16;
    }
};

#ifdef __AMX_BF16__

// A thread's tile registers, all of 16 rows × 64 bytes, for as long as this object lives.
class TileRegisters {
   public:
    TileRegisters() { _tile_loadconfig(&kConfig); }
    ~TileRegisters() { _tile_release(); }
    TileRegisters(const TileRegisters&) = delete;

   private:
    struct alignas(64) Config {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
    // in static memory: GCC thinks that loading reads its first eight bytes only, and would leave
    // out the rest of one on the stack
    static constexpr Config kConfig{1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
};

// kBlocks times 16 rows.
template <int kBlocks>
INLINE void multiply_tiles(const bf16* rows, const bf16* below, const bf16* stripe, int depth, bool add, Fetch fetch,
                           float* c) {
    if (add) {
        _tile_loadd(0, c, 128);
        _tile_loadd(1, c + 16, 128);
        if constexpr (kBlocks == 2) _tile_loadd(2, c + 16 * 32, 128);
        if constexpr (kBlocks == 2) _tile_loadd(3, c + 16 * 32 + 16, 128);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kBlocks == 2) _tile_zero(2);
        if constexpr (kBlocks == 2) _tile_zero(3);
    }
    for (int k = 0; k < depth; ++k, rows += kTile<bf16>, below += kTile<bf16>, stripe += 2 * kTile<bf16>) {
        _tile_loadd(4, rows, 64);
        _tile_loadd(6, stripe, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, stripe + kTile<bf16>, 64);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kBlocks == 2) {
            _tile_loadd(5, below, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        fetch.tile();
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
    if constexpr (kBlocks == 2) _tile_stored(2, c + 16 * 32, 128);
    if constexpr (kBlocks == 2) _tile_stored(3, c + 16 * 32 + 16, 128);
}

INLINE void multiply(const bf16* rows, int64_t stride, const bf16* stripe, int depth, int count, bool add, Fetch fetch,
                     float* c) {
    if (count <= 16)
        multiply_tiles<1>(rows, rows, stripe, depth, add, fetch, c);
    else
        multiply_tiles<2>(rows, rows + stride, stripe, depth, add, fetch, c);
}

template <class Put>
INLINE void multiply_then(const bf16* rows, int64_t stride, const bf16* stripe, int depth, int count, bool add,
                          Fetch fetch, float* c, const Put& put) {
    multiply(rows, stride, stripe, depth, count, add, fetch, c);
    for (int p = 0; p < 2; ++p)
        for (int r = 0; r < count; ++r) put(r, p, load(c + r * 32 + p * 16));
}

#else

class TileRegisters {};

#endif

// Call body.operator()<rows>(), for 1 to kKernelRows rows.
template <int R = kKernelRows, class Body>
INLINE void with_rows(int rows, const Body& body) {
    if constexpr (R > 1)
        if (rows < R) return with_rows<R - 1>(rows, body);
    body.template operator()<R>();
}

// Panels of a stripe that `rows` rows meet at once.
constexpr int panels_at_once(int rows) { return 2 * rows <= kKernelSums ? 2 : 1; }

// How often multiply() reads the weights for `rows` rows.
template <class T>
INLINE int readings(int rows) {
    if (kTileRegisters<T>) return int(ceil_div(rows, 32));
    const int most = std::min(rows, kKernelRows), parts = rows / 16 * (16 / kKernelRows);
    return (parts + int(ceil_div(rows % 16, kKernelRows))) * (2 / panels_at_once(most));
}

// One step along the depth is a number (float) or a pair of numbers (bf16): of sixteen outputs, or of a row.
INLINE F16 load_step(const float* panel) { return load(panel); }
INLINE Pairs load_step(const bf16* panel) { return load_pairs(panel); }
INLINE F16 splat_step(const float* row) { return splat(*row); }
INLINE Pairs splat_step(const bf16* row) { return splat_pair(row); }
INLINE F16 add_product(F16 sum, F16 a, F16 b) { return fma(a, b, sum); }
INLINE F16 add_product(F16 sum, const Pairs& a, const Pairs& b) { return dot_pairs(sum, a, b); }

// `R` rows of a block of 16 with `P` panels. All sums stay in registers, and what is loaded of a row serves all panels:
// a processor loads no more than it multiplies.
template <int R, int P, class T, class Put>
INLINE void multiply_rows(const T* rows, const T* stripe, int depth, bool add, Fetch& fetch, const float* c,
                          const Put& put) {
    F16 acc[P][R];
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) acc[p][r] = add ? load(c + r * 32 + p * 16) : splat(0.0f);
    for (int k = 0; k < depth; ++k, rows += kTile<T>, stripe += 2 * kTile<T>)
        for (int step = 0; step < 16; ++step) {
            const T *row = rows + step * (kDepth<T> / 16), *panel = stripe + step * kStepStride<T>;
            decltype(load_step(panel)) w[P];
            for (int p = 0; p < P; ++p) w[p] = load_step(panel + p * kPanelStride<T>);
            for (int r = 0; r < R; ++r) {
                const auto x = splat_step(row + r * kDepth<T>);
                for (int p = 0; p < P; ++p) acc[p][r] = add_product(acc[p][r], x, w[p]);
            }
            fetch.step();
        }
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) put(r, p, acc[p][r]);
}

template <class T, class Put>
INLINE void multiply_then(const T* rows, int64_t stride, const T* stripe, int depth, int count, bool add, Fetch fetch,
                          const float* c, const Put& put) {
    for (int begin = 0; begin < count; begin += 16)
        for (int r = begin, left = std::min(16, count - begin), part; left; r += part, left -= part) {
            part = int(ceil_div(left, ceil_div(left, kKernelRows)));  // in equal parts
            const T* x = rows + r / 16 * stride + r % 16 * kDepth<T>;
            with_rows(part, [&]<int R>() {
                constexpr int P = panels_at_once(R);
                for (int panel = 0; panel < 2; panel += P)
                    multiply_rows<R, P>(x, stripe + panel * kPanelStride<T>, depth, add, fetch, c + r * 32 + panel * 16,
                                        [&](int row, int p, F16 value) { put(r + row, panel + p, value); });
            });
        }
}

template <class T>
void multiply(const T* rows, int64_t stride, const T* stripe, int depth, int count, bool add, Fetch fetch, float* c) {
    multiply_then(rows, stride, stripe, depth, count, add, fetch, c,
                  [=](int row, int panel, F16 value) { store(c + row * 32 + panel * 16, value); });
}
