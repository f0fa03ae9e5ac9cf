// The two products of attention over a run of keys, for sixteen queries at a time:
//   scores [keys][16]      = K · Qᵀ
//   result [head_dim][16] += Vᵀ · weights [keys][16]
//
// Both forms gather a run of keys and values of one head from their cache blocks first, once for all
// queries of a task.
#pragma once

#include <cstring>

#include "cache.h"
#include "layout.h"

constexpr int kKeys = 64;  // keys of a run, a multiple of 32; kRun of attend_decode.h

// With vectors: keys, values and queries widened to float; queries and weights as [k][16].
template <class T>
class SpanProducts {
   public:
    using Number = float;
    static size_t floats(int head_dim) { return size_t(2 * kKeys) * head_dim; }

    SpanProducts(float* memory, int head_dim)
        : keys_(memory), values_(memory + kKeys * head_dim), head_dim_(head_dim) {}

    Number* at(float* packed, int column) const { return packed + int64_t(column) * head_dim_ * 16; }

    void gather(TokenWalk<T> walk, int64_t value_offset, int count) {
        for (int t = 0; t < count; ++t) {
            const T* key = walk.next();
            for (int i = 0; i < head_dim_; i += 16) {
                store(keys_ + t * head_dim_ + i, load(key + i));
                store(values_ + t * head_dim_ + i, load(key + value_offset + i));
            }
        }
        const int padded = int(ceil_div(count, 4)) * 4;
        std::memset(keys_ + count * head_dim_, 0, size_t(padded - count) * head_dim_ * sizeof(float));
    }

    void pack_queries(const float* const (&sources)[16], float* packed) const {
        for (int i = 0; i < head_dim_; i += 16) {
            F16 tile[16];
            for (int j = 0; j < 16; ++j) tile[j] = load(sources[j] + i);
            transpose(tile);
            for (int j = 0; j < 16; ++j) store(packed + (i + j) * 16, tile[j]);
        }
    }

    void scores(const float* packed, int count, float* out) const {
        for (int t = 0; t < count; t += 4) {
            const FourKeys dots = sum_of_pairs<1>(
                [&](int lane) __attribute__((always_inline)) {
                    FourKeys low, high;
                    for (int j = 0; j < 4; ++j) low.of[j] = high.of[j] = splat(0.0f);
                    for (int i = lane; i < head_dim_; i += 16) {
                        const float* key = keys_ + t * head_dim_ + i;
                        const F16 q = load(packed + i * 16), r = load(packed + (i + 8) * 16);
                        for (int j = 0; j < 4; ++j, key += head_dim_) {
                            low.of[j] = fma(splat(key[0]), q, low.of[j]);
                            high.of[j] = fma(splat(key[8]), r, high.of[j]);
                        }
                    }
                    return low + high;
                }, 0);
            for (int j = 0; j < 4; ++j) store(out + (t + j) * 16, dots.of[j]);
        }
    }

    static void store_weights(float* packed, int key, F16 weight, F16 next) {
        store(packed + key * 16, weight);
        store(packed + key * 16 + 16, next);
    }

    void add_values(const float* packed, int count, float* result) const {
        for (int i = 0; i < head_dim_; i += 4) {
            F16 acc[4];
            for (int j = 0; j < 4; ++j) acc[j] = load(result + (i + j) * 16);
            for (int t = 0; t < count; ++t) {
                const F16 w = load(packed + t * 16);
                for (int j = 0; j < 4; ++j) acc[j] = fma(splat(values_[t * head_dim_ + i + j]), w, acc[j]);
            }
            for (int j = 0; j < 4; ++j) store(result + (i + j) * 16, acc[j]);
        }
    }

   private:
    struct FourKeys {
        F16 of[4];
        INLINE friend FourKeys operator+(FourKeys a, const FourKeys& b) {
            for (int j = 0; j < 4; ++j) a.of[j] = a.of[j] + b.of[j];
            return a;
        }
    };

    float *keys_, *values_;
    int head_dim_;
};

#ifdef __AMX_BF16__

// With AMX: the keys of a run and the transposed values are the left operands, row by row; queries
// and weights are the right operands, pairs along the inner dimension beside each other.
template <>
class SpanProducts<bf16> {
   public:
    using Number = bf16;
    static size_t floats(int head_dim) { return size_t(kKeys) * depth(head_dim); }

    SpanProducts(float* memory, int head_dim)
        : keys_(reinterpret_cast<bf16*>(memory)), values_(keys_ + kKeys * depth(head_dim)),
          head_dim_(head_dim), depth_(depth(head_dim)) {}

    bf16* at(float* packed, int column) const {
        return reinterpret_cast<bf16*>(packed) + int64_t(column) * head_dim_ * 32;
    }

    // keys_ [kKeys][depth]; values_ [head_dim / 16][kKeys / 32] tiles of 16 dimensions × 32 keys
    void gather(TokenWalk<bf16> walk, int64_t value_offset, int count) {
        const int padded = int(ceil_div(count, 32)) * 32;
        const bf16* tokens[kKeys];
        for (int t = 0; t < count; ++t) {
            tokens[t] = walk.next();
            std::memcpy(keys_ + t * depth_, tokens[t], size_t(head_dim_) * sizeof(bf16));
            std::memset(keys_ + t * depth_ + head_dim_, 0, size_t(depth_ - head_dim_) * sizeof(bf16));
        }
        std::memset(keys_ + count * depth_, 0, size_t(padded - count) * depth_ * sizeof(bf16));
        for (int t = 0; t < padded; t += 32)
            for (int i = 0; i < head_dim_; i += 16) {
                F16 pairs[16];
                for (int j = 0; j < 16; ++j) {
                    const int even = t + 2 * j, odd = even + 1;
                    const F16 low = even < count ? load(tokens[even] + value_offset + i) : splat(0.0f);
                    const F16 high = odd < count ? load(tokens[odd] + value_offset + i) : splat(0.0f);
                    store_pairs(reinterpret_cast<bf16*>(pairs + j), low, high);
                }
                transpose(pairs);
                std::memcpy(values_ + (i / 16 * (kKeys / 32) + t / 32) * 512, pairs, 1024);
            }
    }

    // packed [depth / 2][16][2], pairs of dimensions
    void pack_queries(const float* const (&sources)[16], bf16* packed) const {
        for (int i = 0; i < depth_; i += 16) {
            F16 tile[16];
            for (int j = 0; j < 16; ++j) tile[j] = i < head_dim_ ? load(sources[j] + i) : splat(0.0f);
            transpose(tile);
            for (int j = 0; j < 16; j += 2) store_pairs(packed + (i + j) * 16, tile[j], tile[j + 1]);
        }
    }

    void scores(const bf16* packed, int count, float* out) const {
        for (int t = 0; t < count; t += 32) {
            _tile_zero(0);
            _tile_zero(1);
            for (int i = 0; i < depth_; i += 32) {
                _tile_loadd(2, packed + i * 16, 64);
                _tile_loadd(3, keys_ + t * depth_ + i, depth_ * 2);
                _tile_dpbf16ps(0, 3, 2);
                _tile_loadd(4, keys_ + (t + 16) * depth_ + i, depth_ * 2);
                _tile_dpbf16ps(1, 4, 2);
            }
            _tile_stored(0, out + t * 16, 64);
            _tile_stored(1, out + (t + 16) * 16, 64);
        }
    }

    // packed [kKeys / 2][16][2], pairs of keys
    static void store_weights(bf16* packed, int key, F16 weight, F16 next) {
        store_pairs(packed + key * 16, weight, next);
    }

    void add_values(const bf16* packed, int count, float* result) const {
        for (int i = 0; i < head_dim_; i += 32) {
            const bool both = i + 16 < head_dim_;
            const bf16* values = values_ + i / 16 * (kKeys / 32) * 512;
            _tile_loadd(0, result + i * 16, 64);
            if (both) _tile_loadd(1, result + (i + 16) * 16, 64);
            for (int t = 0; t < count; t += 32, values += 512) {
                _tile_loadd(2, packed + t * 16, 64);
                _tile_loadd(3, values, 64);
                _tile_dpbf16ps(0, 3, 2);
                if (!both) continue;
                _tile_loadd(4, values + kKeys / 32 * 512, 64);
                _tile_dpbf16ps(1, 4, 2);
            }
            _tile_stored(0, result + i * 16, 64);
            if (both) _tile_stored(1, result + (i + 16) * 16, 64);
        }
    }

   private:
    static int depth(int head_dim) { return int(ceil_div(head_dim, 32)) * 32; }

    bf16 *keys_, *values_;
    int head_dim_, depth_;
};

#endif
