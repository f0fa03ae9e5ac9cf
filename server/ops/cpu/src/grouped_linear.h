// The product with a matrix of codes, shared among threads.
#pragma once

#include "grouped.h"
#include "linear.h"

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

// `rows` rows from `first` on with one stripe of a part: c [rows to the next 32][32], behind which there is room for a
// product of tiles, and for the codes of a block (or of a group, if that has more) as numbers. Compiled in codes_*.cpp.
template <class T>
void multiply_part(const CodesPart& part, int index, PackedRows<T> x, int first, int rows, int all, int inputs,
                   uint8_t* memory, float* c);
extern template void multiply_part(const CodesPart&, int, PackedRows<float>, int, int, int, int, uint8_t*, float*);
extern template void multiply_part(const CodesPart&, int, PackedRows<bf16>, int, int, int, int, uint8_t*, float*);

// As linear() with plain weights.
template <class T>
void linear(Member& me, PackedRows<T> x, int rows, const CodesWeight& weight, Scratch& scratch, Finish finish) {
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
    // a piece, and what multiply_part() wants behind it
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
