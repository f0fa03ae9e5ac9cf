// What there is for each type of numbers; compiled in kernels_*.cpp.
#pragma once

#include "cache.h"
#include "spec.h"

struct AnyModel {
    virtual ~AnyModel() = default;
    virtual bool forward(const Step& step, float* logits) = 0;
};

template <class T>
struct Kernels {
    static void pack(const void* weight, int outputs, int inputs, bool halves, void* target, int threads);
    static void attend(const Layer& layer, const Batch& batch, const Cache& cache, float* qkv, float* out, int threads);
    static void multiply(const Matrix& matrix, int outputs, int inputs, const float* x, int rows, float* y, int threads);
    static AnyModel* model(const ModelSpec& spec, const Layer* layers);
};
extern template struct Kernels<float>;
extern template struct Kernels<bf16>;
