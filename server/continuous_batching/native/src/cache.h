// The paged cache and the tokens of a step, as the Python side hands them over.
#pragma once

#include "simd.h"

// Consecutive tokens of one sequence; `blocks` are the cache blocks of it from its start.
struct Span {
    int64_t begin, end;  // rows of the step
    int64_t start;       // tokens before them
    const int64_t* blocks;
};

// The tokens of a step; decodes (one token each) come first, then the spans.
struct Batch {
    int64_t num_tokens, num_decodes, num_spans, num_logits;
    const int64_t *token_ids, *positions, *slot_blocks, *slot_offsets;  // [tokens]
    const int64_t* decode_lengths;                                      // [decodes], the new token included
    const int64_t* decode_tables;                                       // [decodes, decode_width]
    int64_t decode_width;
    const Span* spans;
    const int64_t* logit_rows;
};

// Keys and values of one layer: [blocks, layers, 2, block_size, kv_heads, head_dim], seen from `layer`.
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

// Walks the tokens of a sequence through its blocks.
template <class T>
class TokenWalk {
   public:
    TokenWalk(LayerCache<T> cache, const int64_t* blocks, int64_t position, int head)
        : cache_(cache), blocks_(blocks + position / cache.block_size),
          offset_(int(position % cache.block_size)), head_(head) {}

    INLINE const T* next() {
        const T* key = cache_.key(*blocks_, offset_, head_);
        if (++offset_ == cache_.block_size) offset_ = 0, ++blocks_;
        return key;
    }

   private:
    LayerCache<T> cache_;
    const int64_t* blocks_;
    int offset_, head_;
};
