// What kernels.h declares, for kernels_*.cpp alone: it takes long to compile.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "model.h"

template <class T>
struct ModelOf final : AnyModel {
    ModelOf(const ModelSpec& spec, const Layer* layers) : model(spec, layers) {}
    bool forward(const Step& step, float* logits) override { return model.forward(step, logits); }
    Model<T> model;
};

template <class T>
void Kernels<T>::pack(const void* weight, int outputs, int inputs, bool halves, void* target, int threads) {
    const int stripes = int(ceil_div(outputs, 32));
#pragma omp parallel for num_threads(threads)
    for (int stripe = 0; stripe < stripes; ++stripe)
        pack_stripe(static_cast<const T*>(weight), outputs, inputs, halves, stripe, static_cast<T*>(target));
}

template <class T>
void Kernels<T>::attend(const Layer& layer, const Batch& batch, const Cache& cache, float* qkv, float* out, int threads) {
    const int width = layer.attention.width();
    const AttentionStep<T> step(batch, cache);
    std::vector<T> packed(size_t(ceil_div(batch.num_tokens, 16) * ceil_div(width, kDepth<T>)) * kTile<T>);
    const PackedRows<T> rows{packed.data(), int(ceil_div(width, kDepth<T>))};
    Team team(threads);
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const TileRegisters tiles;
        Scratch scratch;
        Member me(team, omp_get_thread_num());
        step.run(me, layer, qkv, rows, scratch);
        me.share(int(batch.num_tokens), [&](int row) {
            for (int i = 0; i < width; ++i) out[int64_t(row) * width + i] = widen(*rows.at(row, i));
        });
    }
}

template <class T>
void Kernels<T>::multiply(const Matrix& matrix, int outputs, int inputs, const float* x, int rows, float* y, int threads) {
    const int tiles = int(ceil_div(inputs, kDepth<T>));
    std::vector<T> packed(size_t(ceil_div(rows, 32)) * 2 * tiles * kTile<T>);
    const PackedRows<T> input{packed.data(), tiles};
    Team team(threads);
    Scratch prepared;
    uint8_t* memory = reinterpret_cast<uint8_t*>(prepared.floats(size_t(prepared_size(matrix, rows, inputs) / 4 + 1)));
#pragma omp parallel num_threads(threads)
    {
        [[maybe_unused]] const TileRegisters registers;
        Scratch scratch;
        Member me(team, omp_get_thread_num());
        me.share(rows, [&](int row) {
            for (int i = 0; i < inputs; i += 16) input.put(row, i, load(x + int64_t(row) * inputs + i));
        });
        with_weight<T>(matrix, outputs, inputs, memory, [&](const auto& weight) {
            linear_to<false>(me, input, rows, weight, scratch, nullptr, y);
        });
    }
}

template <class T>
AnyModel* Kernels<T>::model(const ModelSpec& spec, const Layer* layers) {
    return new ModelOf<T>(spec, layers);
}
