// One stripe of codes with rows of numbers.
#pragma once

#include "grouped_linear.h"
#include "grouped_products.h"

// The same with rows of bytes. Compiled in codes_bytes.cpp.
void multiply_bytes(const ByteRows& x, const CodesForm& form, const uint8_t* stripe, int first, int rows, float* c);

// On tile registers: they take numbers in the layout of layout.h, and sum in an order of their own.
template <int kBits, class T>
void multiply_on_tiles(const NumberInputs<T>& product, const CodesForm& form, const uint8_t* stripe, int first,
                       int rows, T* numbers, float* part, float* c) {
    const int tiles = form.group / kDepth<T>;
    const int64_t stride = int64_t(product.x.depth_tiles) * kTile<T>;
    const auto place = [=](int k, int panel) {
        return numbers + (k / kDepth<T> * 2 + panel) * kTile<T> + k % kDepth<T> * 16;
    };
    GroupWalk walk(form, stripe, 0);
    for (int g = 0; g < product.groups; ++g, walk.next()) {
        const uint8_t* codes = walk.codes();
        for (int k = 0; k < form.group; k += kChunk, codes += chunk_bytes(kBits))
            each_quad([&]<int kQuad>() {
                const Quad quads[2] = {quad_of<kBits, kQuad, 0>(codes), quad_of<kBits, kQuad, 1>(codes)};
                for (int p = 0; p < 2; ++p) {
                    store_codes(place(k + 4 * kQuad, p), pair_of<kBits, 0>(quads[p]));
                    store_codes(place(k + 4 * kQuad + 2, p), pair_of<kBits, 1>(quads[p]));
                }
            });
        const GroupScales scales = walk.scales();
        for (int row = 0; row < rows; row += 32)
            multiply_then(product.x.at(first + row, g * form.group), stride, numbers, tiles, std::min(32, rows - row),
                          false, Fetch{nullptr, 0}, part, [&](int r, int p, F16 value) {
                              float* total = c + (row + r) * 32 + p * 16;
                              store(total, product.fold_one(value, scales.scale[p], scales.offset[p],
                                                            first + row + r, g, load(total)));
                          });
    }
}

template <class T>
void multiply_part(const CodesPart& part, int index, PackedRows<T> x, int first, int rows, int all, int inputs,
                   uint8_t* memory, float* c) {
    const CodesForm& form = part.form;
    const uint8_t* stripe = part.stripe(index, inputs);
    std::memset(c, 0, size_t(ceil_div(rows, 32)) * 32 * 32 * sizeof(float));
    if (part.as_bytes) return multiply_bytes(ByteRows::at(memory, all, inputs, form.group), form, stripe, first, rows, c);
    with_bits(form.bits, [&]<int kBits>() {
        const float* sums = form.has_offsets() ? reinterpret_cast<const float*>(memory) : nullptr;
        const NumberInputs<T> numbers{x, sums, inputs / form.group, 1.0f / kPairUnit<kBits>};
        float* own = c + ceil_div(rows, 32) * 32 * 32;  // behind it
        if constexpr (kTileRegisters<T>)
            if (form.group % kDepth<T> == 0)
                return multiply_on_tiles<kBits>(numbers, form, stripe, first, rows, reinterpret_cast<T*>(own + 32 * 32), own, c);
        if (rows >= kReadyRows)
            multiply_ready<kBits>(ReadyProduct<T>{numbers}, form, stripe, inputs, first, rows,
                                  reinterpret_cast<uint8_t*>(own), c);
        else
            multiply_stripe(CodeProduct<T, kBits>{numbers}, form, stripe, inputs, first, rows, c);
    });
}
