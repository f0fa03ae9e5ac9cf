// How activations and weights lie in memory for the matrix products.
//
// Both are cut into tiles of 16 rows × 64 bytes (1 KiB, one AMX tile). kDepth<T> is how much of the
// inner dimension K a tile spans: 16 for float, 32 for bf16.
//
//   activations [rows / 16][K / kDepth] tiles; a tile holds 16 rows × kDepth numbers, row by row.
//   weights     [outputs / 32][K / kDepth] times two tiles, of 16 outputs ("a panel") each. Their rows
//               run along K: float one k × 16 outputs; bf16 a pair (k, k + 1) of each of 16 outputs.
//               For tile registers one tile lies after the other, for vectors they alternate row by row:
//               what is read together lies together, and the processor sees that all is read in order.
//
// 32 outputs over all K, a *stripe*, are contiguous: the unit of work of a thread.
#pragma once

#include "simd.h"

template <class T>
constexpr int kDepth = 64 / int(sizeof(T));
template <class T>
constexpr int kTile = 16 * kDepth<T>;  // numbers in a tile

#ifdef __AMX_BF16__
template <class T>
constexpr bool kTileRegisters = sizeof(T) == 2;
#else
template <class T>
constexpr bool kTileRegisters = false;
#endif

// Numbers of a weight from a panel to the other, and from a row of a panel to the next.
template <class T>
constexpr int kPanelStride = kTileRegisters<T> ? kTile<T> : kDepth<T>;
template <class T>
constexpr int kStepStride = kTileRegisters<T> ? kDepth<T> : 2 * kDepth<T>;

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Activations as a product reads them.
template <class T>
struct PackedRows {
    T* data;
    int depth_tiles;

    INLINE T* at(int64_t row, int64_t column) const {
        const int64_t tile = row / 16 * depth_tiles + column / kDepth<T>;
        return data + tile * kTile<T> + row % 16 * kDepth<T> + column % kDepth<T>;
    }
    // Sixteen neighbours of a row; `column` is a multiple of 16.
    INLINE void put(int64_t row, int64_t column, F16 values) const { store(at(row, column), values); }
};

// A weight matrix as a product reads it.
template <class T>
struct PackedWeight {
    const T* data;
    int outputs;
    int depth_tiles;

    int stripes() const { return int(ceil_div(outputs, 32)); }
    int64_t stripe_size() const { return int64_t(depth_tiles) * 2 * kTile<T>; }
    const T* stripe(int index) const { return data + index * stripe_size(); }
};

template <class T>
int64_t packed_size(int64_t outputs, int64_t inputs) {
    return ceil_div(outputs, 32) * ceil_div(inputs, kDepth<T>) * 2 * kTile<T>;
}

// Write one stripe of `weight` [outputs, inputs] at its place in `target`. With `halves`, the weight
// is two matrices on top of each other and a stripe takes 16 outputs of each; else 32 in a row.
// What the last tiles have too many of is zero.
template <class T>
void pack_stripe(const T* weight, int outputs, int inputs, bool halves, int stripe, T* target) {
    const int depth_tiles = int(ceil_div(inputs, kDepth<T>));
    constexpr int run = 4 / int(sizeof(T));  // neighbours along K that stay together
    const int end = halves ? outputs / 2 : outputs;
    T* out = target + int64_t(stripe) * depth_tiles * 2 * kTile<T>;
    for (int tile = 0; tile < depth_tiles; ++tile, out += 2 * kTile<T>)
        for (int panel = 0; panel < 2; ++panel)
            for (int row = 0; row < 16; ++row)
                for (int column = 0; column < 16; ++column)
                    for (int i = 0; i < run; ++i) {
                        const int k = tile * kDepth<T> + row * run + i;
                        const int n = halves ? stripe * 16 + column : stripe * 32 + panel * 16 + column;
                        const int64_t source = halves ? int64_t(panel) * end + n : n;
                        const int place = panel * kPanelStride<T> + row * kStepStride<T> + column * run + i;
                        out[place] = n < end && k < inputs ? weight[source * inputs + k] : T{};
                    }
}
