// The product with a matrix of codes, shared among threads.
#pragma once

#include "grouped_products.h"

// A matrix of codes as a product reads it. memory: room for what all threads make of the activations first.
struct CodesWeight {
    const CodesPart* parts;
    int count, outputs, inputs;
    uint8_t* memory;

    int stripes() const { return int(ceil_div(outputs, 32)); }
};

// Bytes of that memory for one part, or for a matrix.
inline int64_t prepared_size(const CodesPart& part, int64_t rows, int64_t inputs) {
    if (part.as_bytes) return ByteRows::size(rows, inputs, part.form.group);
    return part.form.has_offsets() ? ceil_div(rows * (inputs / part.form.group) * 4, 64) * 64 : 0;
}
inline int64_t prepared_size(const Matrix& matrix, int64_t rows, int64_t inputs) {
    int64_t total = 0;
    for (int i = 0; i < matrix.count; ++i) total += prepared_size(matrix.parts[i], rows, inputs);
    return total;
}

// What a part needs of one row: its bytes, or the sums of its groups.
template <class T>
void prepare_row(const CodesPart& part, PackedRows<T> x, int row, int rows, int inputs, uint8_t* memory) {
    const CodesForm& form = part.form;
    if (part.as_bytes) return quantize_row(x, row, form.middle(), ByteRows::at(memory, rows, inputs, form.group));
    if (!form.has_offsets()) return;
    const int groups = inputs / form.group;
    float* sums = reinterpret_cast<float*>(memory) + int64_t(row) * groups;
    for (int g = 0; g < groups; ++g) {
        F16 total = splat(0.0f);
        for (int k = g * form.group; k < (g + 1) * form.group; k += 16) total = total + load(x.at(row, k));
        sums[g] = sum(total);
    }
}

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
                              store(total, product.fold(value, scales.scale[p], scales.offset[p], first + row + r, g,
                                                        load(total)));
                          });
    }
}

// `rows` rows from `first` on with one stripe of a part: c [rows to the next 32][32].
template <class T>
void multiply_part(const CodesPart& part, int index, PackedRows<T> x, int first, int rows, int all, int inputs,
                   uint8_t* memory, float* c) {
    const CodesForm& form = part.form;
    const uint8_t* stripe = part.stripe(index, inputs);
    std::memset(c, 0, size_t(ceil_div(rows, 32)) * 32 * 32 * sizeof(float));
    with_bits(form.bits, [&]<int kBits>() {
        if (part.as_bytes) {
            const ByteProduct<kBits> product{ByteRows::at(memory, all, inputs, form.group), form.has_offsets()};
            return multiply_stripe(product, form, stripe, inputs, first, rows, c);
        }
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

// As linear() with plain weights.
template <class T, class Finish>
void linear(Member& me, PackedRows<T> x, int rows, const CodesWeight& weight, Scratch& scratch, const Finish& finish) {
    if (rows == 0) return;
    const int inputs = weight.inputs, stripes = weight.stripes();
    const Passes passes(rows, weight.parts[0].as_bytes ? int(ceil_div(inputs, 64)) : x.depth_tiles);
    int64_t prepared = 0;
    for (int i = 0; i < weight.count; ++i) prepared += prepared_size(weight.parts[i], rows, inputs);
    if (prepared)
        me.share(rows, [&](int row) {
            uint8_t* memory = weight.memory;
            for (int i = 0; i < weight.count; memory += prepared_size(weight.parts[i++], rows, inputs))
                prepare_row(weight.parts[i], x, row, rows, inputs, memory);
        });
    // a piece, a product of tiles, and the codes of a block (or of a group, if that has more) as numbers
    float* c = scratch.floats(size_t(ceil_div(passes.rows, 32)) * 32 * 32 + 32 * 32 + kBlockInputs * 32);
    me.share(passes.count * stripes, [&](int task) {
        const int first = task / stripes * passes.rows, index = task % stripes;
        const int count = std::min(passes.rows, rows - first);
        const CodesPart* part = weight.parts;
        uint8_t* memory = weight.memory;
        int own = index;
        for (; own >= part->stripes; ++part) {
            own -= part->stripes;
            memory += prepared_size(*part, rows, inputs);
        }
        multiply_part(*part, own, x, first, count, rows, inputs, memory, c);
        finish(first, count, index, c);
    });
}
