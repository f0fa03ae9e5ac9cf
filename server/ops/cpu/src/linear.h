// Matrix products of packed activations and weights, with what follows them done on the way.
#pragma once

#include "activations.h"
#include "scratch.h"
#include "team.h"
#include "tiles.h"

// Rows that pass by a stripe before the next one: as many as stay in the second-level cache.
constexpr int64_t kPassBytes = 1 << 20;
constexpr int kPassRows = 512;
// Depth tiles of a stripe that all rows pass by before the next ones: they stay in the first level.
constexpr int kDepthBlock = 8;

// How far ahead of their use weights are fetched that are read once: as much as hides the memory's latency. Vectors
// wait for few rows themselves, so that the processor's own fetching is at work as well, and far ahead is too far
// for it; more rows keep them so busy that they look ahead no more.
template <class T>
constexpr int64_t bytes_ahead(int rows) {
    return kTileRegisters<T> ? 3072 : rows <= 4 ? 1536 : 8192;
}

// How many rows pass by a stripe together, and how often.
struct Passes {
    int count, rows;  // rows: a multiple of 32

    Passes(int all, int depth_tiles) {
        const int most = int(std::clamp<int64_t>(kPassBytes / (depth_tiles * 64) / 32 * 32, 32, kPassRows));
        count = int(ceil_div(all, most));
        rows = int(ceil_div(all, count * 32)) * 32;
    }
};

// What takes the pieces of a product, one after the other: `count` rows from `row` on with stripe `index` of the weight,
// c [count][32]. It refers to a function that the caller keeps; one call serves thousands of multiplications, and
// products are compiled once, whatever follows them.
class Finish {
   public:
    template <class Function>
    Finish(const Function& function)
        : function_(&function), call_([](const void* called, int row, int count, int index, const float* c) {
              (*static_cast<const Function*>(called))(row, count, index, c);
          }) {}
    void operator()(int row, int count, int index, const float* c) const { call_(function_, row, count, index, c); }

   private:
    const void* function_;
    void (*call_)(const void*, int, int, int, const float*);
};

// Rows [begin, end) × stripe `index` of a weight, at `stripe`.
//
// Weights are fetched ahead, at the pace at which they are used. Where they are read once, by just as much as hides
// the memory's latency, which the processor's own fetching does for a page at a time only. Where each block of them
// is read several times, the next block comes meanwhile; for tile registers, which are faster, the next stripe.
template <class T>
void pass_stripe(PackedRows<T> x, int begin, int end, const T* stripe, int index, Finish finish) {
    alignas(64) float c[kPassRows * 32];
    const int depth = x.depth_tiles, times = readings<T>(end - begin), block = times == 1 ? depth : kDepthBlock;
    constexpr int64_t tile_bytes = 2 * kTile<T> * sizeof(T);
    constexpr int grain = kTileRegisters<T> ? 64 : 16;
    const int64_t ahead = times == 1 ? bytes_ahead<T>(end - begin) : (kTileRegisters<T> ? depth : kDepthBlock) * tile_bytes;
    Fetch fetch{nullptr, int(ceil_div(tile_bytes, times * grain)) * grain};
    for (int k = 0; k < depth; k += block) {
        const int tiles = std::min(block, depth - k);
        const T* weights = stripe + k * 2 * kTile<T>;
        fetch.next = reinterpret_cast<const char*>(weights) + ahead;
        for (int row = begin; row < end; row += 32) {
            const int count = std::min(32, end - row);
            float* out = c + (row - begin) * 32;
            multiply(x.at(row, k * kDepth<T>), int64_t(depth) * kTile<T>, weights, tiles, count, k > 0, fetch, out);
            fetch.next += int64_t(fetch.bytes) * tiles * readings<T>(count);
            if (k + tiles == depth) finish(row, count, index, out);
        }
    }
}

// Compute rows × weightᵀ, shared among threads.
template <class T>
void linear(Member& me, PackedRows<T> x, int rows, const PackedWeight<T>& weight, Scratch&, Finish finish) {
    if (rows == 0) return;
    const Passes passes(rows, x.depth_tiles);
    const int pass = passes.rows, stripes = weight.stripes();
    me.share(passes.count * stripes, [&](int task) {
        const int begin = task / stripes * pass, end = std::min(rows, begin + pass), index = task % stripes;
        pass_stripe(x, begin, end, weight.stripe(index), index, finish);
    });
}

// What takes pieces of a product as y[row, :] = product + bias, or += scale · (product + bias); y is [rows, outputs]
// floats. bias may be null.
template <bool kAdd>
INLINE auto store_rows(int64_t outputs, const float* bias, float* y, float scale = 1.0f) {
    return [=](int row, int count, int stripe, const float* c) {
        const int n = stripe * 32, width = int(std::min<int64_t>(32, outputs - n));
        for (int r = 0; r < count; ++r) {
            float* out = y + (row + r) * outputs + n;
            int i = 0;
            for (; i + 16 <= width; i += 16) {
                F16 value = load(c + r * 32 + i);
                if (bias) value = value + load(bias + n + i);
                if (kAdd) value = fma(value, splat(scale), load(out + i));
                store(out + i, value);
            }
            for (; i < width; ++i) {
                const float value = c[r * 32 + i] + (bias ? bias[n + i] : 0.0f);
                out[i] = kAdd ? out[i] + scale * value : value;
            }
        }
    };
}

// The product, stored so. A Weight is any for which there is a linear().
template <bool kAdd, class T, class Weight>
void linear_to(Member& me, PackedRows<T> x, int rows, const Weight& weight, Scratch& scratch, const float* bias,
               float* y, float scale = 1.0f) {
    linear(me, x, rows, weight, scratch, store_rows<kAdd>(weight.outputs, bias, y, scale));
}

// What takes pieces of a product as y[row, :] = activation(gate) · up, packed for the next product. The weight was
// packed in halves, gate above up, so that a stripe holds 16 outputs of each. bias [2 × inner] may be null.
template <class T>
INLINE auto put_gated(int inner, const float* bias, int32_t activation, const Clamp& clamp, PackedRows<T> y) {
    return [=](int row, int count, int stripe, const float* c) {
        const int n = stripe * 16;
        const auto put = [&](const auto& combine) {
            for (int r = 0; r < count; ++r) {
                F16 gate = load(c + r * 32), up = load(c + r * 32 + 16);
                if (bias) gate = gate + load(bias + n), up = up + load(bias + inner + n);
                y.put(row + r, n, combine(gate, up));
            }
        };
        if (clamp.limit) return put([&](F16 gate, F16 up) { return clamped<T>(gate, up, clamp); });
        with_activation(activation,
                        [&]<Activation kKind>() { put([](F16 gate, F16 up) { return activate<T, kKind>(gate) * up; }); });
    };
}

template <class T, class Weight>
void gated_linear(Member& me, PackedRows<T> x, int rows, const Weight& weight, Scratch& scratch, const float* bias,
                  int32_t activation, const Clamp& clamp, PackedRows<T> y) {
    linear(me, x, rows, weight, scratch, put_gated(weight.outputs / 2, bias, activation, clamp, y));
}

// What takes pieces as y[row, :] = activation(product + bias), packed; outputs are a multiple of 32.
template <class T>
INLINE auto put_activated(const float* bias, int32_t activation, PackedRows<T> y) {
    return [=](int row, int count, int stripe, const float* c) {
        with_activation(activation, [&]<Activation kKind>() {
            for (int r = 0; r < count; ++r)
                for (int i = 0; i < 32; i += 16) {
                    F16 value = load(c + r * 32 + i);
                    if (bias) value = value + load(bias + stripe * 32 + i);
                    y.put(row + r, stripe * 32 + i, activate<T, kKind>(value));
                }
        });
    };
}

template <class T, class Weight>
void activated_linear(Member& me, PackedRows<T> x, int rows, const Weight& weight, Scratch& scratch,
                      const float* bias, int32_t activation, PackedRows<T> y) {
    linear(me, x, rows, weight, scratch, put_activated(bias, activation, y));
}
