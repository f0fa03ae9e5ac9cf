// The paged caches and the tokens of a step, as the Python side hands them over.
#pragma once

#include <algorithm>

#include "simd.h"

// Consecutive tokens of one sequence; `blocks` are the cache blocks of it from its start. Those that
// lie before all that the tokens see may be any number: they are not read.
struct Span {
    int64_t begin, end;  // rows of the step
    int64_t start;       // tokens before them
    const int64_t* blocks;
};

// The tokens of a step and where they lie in the cache of one group of layers; decodes (one token
// each) come first, then the spans. Of a decode's blocks it is as with those of a span.
struct Batch {
    int64_t num_tokens, num_decodes, num_spans;
    const int64_t *positions, *slot_blocks, *slot_offsets;  // [tokens]
    const int64_t* decode_lengths;                          // [decodes], the new token included
    const int64_t* decode_tables;                           // [decodes, decode_width]
    int64_t decode_width;
    const Span* spans;
};

// Keys and values of a group of layers: [blocks, layers, 2, block_size, kv_heads, head_dim].
struct Cache {
    void* data;
    int64_t block_stride, layer_stride;  // numbers from one to the next
    int32_t block_size;
};

// What a forward pass is for: a batch and a cache for every group of layers.
struct Step {
    const int64_t *token_ids, *logit_rows;  // [tokens], [logits]
    int64_t num_logits;
    const Batch* batches;
    const Cache* caches;
    const int64_t* state_rows;  // [states], tokens whose hidden states are wanted
    int64_t num_states;
    float* states;  // [states, hidden], takes what the last layer gives for them
    const int64_t* input_layers;  // [input_layers], ascending, of which the input is wanted; one past the last: its output
    int64_t num_input_layers;
    float* layer_inputs;  // [tokens, input_layers, hidden], takes the residual stream in front of them
};

// Keys and values of one layer, seen from it.
template <class T>
struct LayerCache {
    T* data;
    int64_t block_stride;  // numbers from one block to the next, all layers between
    int block_size, kv_heads, head_dim;

    INLINE T* key(int64_t block, int offset, int head) const {
        return data + block * block_stride + (int64_t(offset) * kv_heads + head) * head_dim;
    }
    INLINE int64_t value_offset() const { return int64_t(block_size) * kv_heads * head_dim; }
};

// Walks the tokens of a sequence through its blocks, from position `begin` on. What lies before position
// `first` is not read: the token there stands in for it, and its caller gives it no weight.
template <class T>
class TokenWalk {
   public:
    TokenWalk(LayerCache<T> cache, const int64_t* blocks, int64_t begin, int64_t first, int head)
        : cache_(cache), head_(head), missing_(int(std::max<int64_t>(first - begin, 0))) {
        const int64_t position = begin + missing_;
        blocks_ = blocks + position / cache.block_size;
        offset_ = int(position % cache.block_size);
    }

    INLINE const T* next() {
        const T* key = cache_.key(*blocks_, offset_, head_);
        if (missing_) {
            --missing_;
            return key;
        }
        if (++offset_ == cache_.block_size) offset_ = 0, ++blocks_;
        return key;
    }

   private:
    LayerCache<T> cache_;
    const int64_t* blocks_;
    int offset_, head_, missing_;
};
