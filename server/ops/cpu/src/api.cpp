// What Python calls: plain C, pointers and sizes. `dtype` is 0 for float32, 1 for bfloat16.

#include <algorithm>

#include "choose.h"
#include "model.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

struct AnyModel {
    virtual ~AnyModel() = default;
    virtual bool forward(const Step& step, float* logits) = 0;
};

template <class T>
struct ModelOf final : AnyModel {
    ModelOf(const ModelSpec& spec, const Layer* layers) : model(spec, layers) {}
    bool forward(const Step& step, float* logits) override { return model.forward(step, logits); }
    Model<T> model;
};

template <class T>
void pack_all(const void* weight, int outputs, int inputs, bool halves, void* target, int threads) {
    const int stripes = int(ceil_div(outputs, 32));
#pragma omp parallel for num_threads(threads)
    for (int stripe = 0; stripe < stripes; ++stripe)
        pack_stripe(static_cast<const T*>(weight), outputs, inputs, halves, stripe, static_cast<T*>(target));
}

template <class T>
void attend_all(const Layer& layer, const Batch& batch, const Cache& cache, float* qkv, float* out, int threads) {
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
void multiply_all(const Matrix& matrix, int outputs, int inputs, const float* x, int rows, float* y, int threads) {
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

}  // namespace

extern "C" {

// Ask the kernel for the tile registers; false: this processor or kernel has none to give.
bool native_start() {
#ifdef __AMX_BF16__
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return true;
#endif
}

// Whether a token's attention has the same bits in a span as as a decode: on the tile registers it has not.
bool native_spans_like_decodes([[maybe_unused]] int dtype) {
#ifdef __AMX_BF16__
    return dtype == 0;
#else
    return true;
#endif
}

int64_t native_packed_bytes(int dtype, int64_t outputs, int64_t inputs) {
    return dtype ? packed_size<bf16>(outputs, inputs) * 2 : packed_size<float>(outputs, inputs) * 4;
}

void native_pack(int dtype, const void* weight, int outputs, int inputs, bool halves, void* target, int threads) {
    (dtype ? pack_all<bf16> : pack_all<float>)(weight, outputs, inputs, halves, target, threads);
}

int64_t native_codes_bytes(const CodesPart* part, int inputs) { return part->stripes * part->form.stripe_size(inputs); }

// Pack all of a part at part->data; source->outputs has a place for each output of every stripe.
void native_pack_codes(const CodesPart* part, const CodesSource* source, int inputs, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int stripe = 0; stripe < part->stripes; ++stripe) pack_codes_stripe(*source, *part, inputs, stripe);
}

// y [rows, outputs] = x [rows, inputs] · matrixᵀ; x in the order of the matrix, float like y.
void native_multiply(int dtype, const Matrix* matrix, int outputs, int inputs, const float* x, int rows, float* y,
                     int threads) {
    (dtype ? multiply_all<bf16> : multiply_all<float>)(*matrix, outputs, inputs, x, rows, y, threads);
}

AnyModel* native_model(int dtype, const ModelSpec* spec, const Layer* layers) {
    if (dtype) return new ModelOf<bf16>(*spec, layers);
    return new ModelOf<float>(*spec, layers);
}

void native_free(AnyModel* model) { delete model; }

// false: a rank of a split model is gone, and the logits hold anything.
bool native_forward(AnyModel* model, const Step* step, float* logits) { return model->forward(*step, logits); }

// Norm, rotate, store and attend for one layer. qkv [tokens, (heads + 2 × kv_heads) × head_dim] is changed;
// out is [tokens, heads × head_dim].
void native_attend(int dtype, const Layer* layer, const Batch* batch, const Cache* cache, float* qkv, float* out,
                   int threads) {
    (dtype ? attend_all<bf16> : attend_all<float>)(*layer, *batch, *cache, qkv, out, threads);
}

// The next token of each line, see choose.h. scores [lines, vocab]; all else [lines], temperature 0 for the likeliest.
void native_choose(const float* scores, int64_t lines, int64_t vocab, const float* temperatures, const int64_t* seeds,
                   const int64_t* answers, const int64_t* positions, const uint32_t* masks, const int64_t* rows,
                   int64_t words, int64_t* tokens, int threads) {
    choose_all(scores, lines, vocab, temperatures, seeds, answers, positions, masks, rows, words, tokens, threads);
}

// Exclude tokens: lines at[i] of scores [lines, vocab] get -inf where mask rows[i] of masks [masks, words] has no bit.
void native_exclude(float* scores, int64_t vocab, const int64_t* at, const uint32_t* masks, const int64_t* rows,
                    int64_t words, int64_t lines, int threads) {
    exclude_all(scores, vocab, at, masks, rows, words, lines, threads);
}
}
