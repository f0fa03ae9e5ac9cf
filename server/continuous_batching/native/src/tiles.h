// Products of tiles: up to 32 rows of activations with one stripe of weights.
//
// multiply() leaves C [32][32] floats: rows of activations × outputs of the stripe. There is one
// for AMX (bf16) and one for vectors (bf16 or float); both read the layouts of layout.h.
#pragma once

#include "layout.h"

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

INLINE void multiply(const bf16* rows, const bf16* stripe, int depth, int count, float* c) {
    const bf16* below = rows + int64_t(depth) * kTile<bf16>;  // the next 16 rows
    _tile_zero(0);
    _tile_zero(1);
    if (count <= 16) {
        for (int k = 0; k < depth; ++k, rows += kTile<bf16>, stripe += 2 * kTile<bf16>) {
            _tile_loadd(4, rows, 64);
            _tile_loadd(6, stripe, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, stripe + kTile<bf16>, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (int k = 0; k < depth; ++k, rows += kTile<bf16>, below += kTile<bf16>, stripe += 2 * kTile<bf16>) {
            _tile_loadd(4, rows, 64);
            _tile_loadd(6, stripe, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, stripe + kTile<bf16>, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, below, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, c + 16 * 32, 128);
        _tile_stored(3, c + 16 * 32 + 16, 128);
    }
    _tile_stored(0, c, 128);
    _tile_stored(1, c + 16, 128);
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

// `R` rows with `P` panels, over the whole depth.
template <int R, int P, class T>
void multiply_rows(const T* rows, const T* stripe, int depth, float* c) {
    F16 acc[P][R];
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) acc[p][r] = splat(0.0f);
    for (int k = 0; k < depth; ++k, rows += kTile<T>, stripe += 2 * kTile<T>) {
        for (int p = 0; p < P; ++p) multiply_tile<R>(rows, stripe + p * kTile<T>, acc[p]);
    }
    for (int p = 0; p < P; ++p)
        for (int r = 0; r < R; ++r) store(c + r * 32 + p * 16, acc[p][r]);
}

template <class T>
void multiply(const T* rows, const T* stripe, int depth, int count, float* c) {
    constexpr int R = kKernelRows, P = kKernelPanels;
    for (int panel = 0; panel < 2; panel += P)
        for (int r = 0; r < count;) {
            const T* part = rows + r / 16 * int64_t(depth) * kTile<T> + r % 16 * kDepth<T>;
            const T* weights = stripe + panel * kTile<T>;
            float* out = c + r * 32 + panel * 16;
            if (count - r == 1) {
                multiply_rows<1, P>(part, weights, depth, out);
                r += 1;
            } else {
                multiply_rows<R, P>(part, weights, depth, out);
                r += R;
            }
        }
}
