// Products of tiles: up to 32 rows of activations with one stripe of weights.
//
// multiply() leaves or adds to C [32][32] floats: rows of activations × outputs of the stripe, over
// `depth` tiles; `stride` is how far (in numbers) the second 16 rows are from the first. There is one
// for AMX (bf16) and one for vectors (bf16 or float); both read the layouts of layout.h. In both, a row's
// sums have the same order however many rows there are.
// multiply_then() gives what would be left there to put(row, panel, sixteen outputs) instead, for whole
// blocks of rows, also beyond `count`; C may be overwritten.
#pragma once

#include "layout.h"

// Memory that is brought into the second-level cache meanwhile: this number of lines with every depth tile.
struct Fetch {
    const char* next;
    int lines;

    INLINE void step() {
        for (int i = 0; i < lines; ++i, next += 64) prefetch_far(next);
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
        fetch.step();
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

// One depth tile of `R` rows with one panel, added to acc.
template <int R>
INLINE void multiply_tile(const float* rows, const float* panel, F16 (&acc)[R]) {
    for (int k = 0; k < 16; ++k) {
        const F16 w = load(panel + k * 16);
        for (int r = 0; r < R; ++r) acc[r] = fma(splat(rows[r * 16 + k]), w, acc[r]);
    }
}
template <int R>
INLINE void multiply_tile(const bf16* rows, const bf16* panel, F16 (&acc)[R]) {
    for (int k = 0; k < 16; ++k)
        for (int r = 0; r < R; ++r) acc[r] = dot_pairs(acc[r], rows + r * 32 + 2 * k, panel + k * 32);
}

// `R` rows with `P` panels.
template <int R, int P, class T, class Put>
INLINE void multiply_rows(const T* rows, const T* stripe, int depth, bool add, Fetch fetch, const float* c,
                          const Put& put) {
    F16 acc[P][R];
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) acc[p][r] = add ? load(c + r * 32 + p * 16) : splat(0.0f);
    for (int k = 0; k < depth; ++k, rows += kTile<T>, stripe += 2 * kTile<T>) {
        for (int p = 0; p < P; ++p) multiply_tile<R>(rows, stripe + p * kTile<T>, acc[p]);
        fetch.step();
    }
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) put(r, p, acc[p][r]);
}

template <class T, class Put>
INLINE void multiply_then(const T* rows, int64_t stride, const T* stripe, int depth, int count, bool add, Fetch fetch,
                          const float* c, const Put& put) {
    constexpr int R = kKernelRows, P = kKernelPanels;
    for (int panel = 0; panel < 2; panel += P)
        for (int r = 0; r < count; fetch.lines = 0) {  // the first rows fetch for all
            const T* part = rows + r / 16 * stride + r % 16 * kDepth<T>;
            const T* weights = stripe + panel * kTile<T>;
            const float* before = c + r * 32 + panel * 16;
            const auto put_part = [&](int row, int p, F16 value) { put(r + row, panel + p, value); };
            if (count - r == 1) {
                multiply_rows<1, P>(part, weights, depth, add, fetch, before, put_part);
                r += 1;
            } else {
                multiply_rows<R, P>(part, weights, depth, add, fetch, before, put_part);
                r += R;
            }
        }
}

template <class T>
void multiply(const T* rows, int64_t stride, const T* stripe, int depth, int count, bool add, Fetch fetch, float* c) {
    multiply_then(rows, stride, stripe, depth, count, add, fetch, c,
                  [=](int row, int panel, F16 value) { store(c + row * 32 + panel * 16, value); });
}
