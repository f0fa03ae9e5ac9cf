// What Python calls: plain C, pointers and sizes. `dtype` is 0 for float32, 1 for bfloat16.

#include "choose.h"
#include "kernels.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
    (dtype ? Kernels<bf16>::pack : Kernels<float>::pack)(weight, outputs, inputs, halves, target, threads);
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
    (dtype ? Kernels<bf16>::multiply : Kernels<float>::multiply)(*matrix, outputs, inputs, x, rows, y, threads);
}

AnyModel* native_model(int dtype, const ModelSpec* spec, const Layer* layers) {
    return (dtype ? Kernels<bf16>::model : Kernels<float>::model)(*spec, layers);
}

void native_free(AnyModel* model) { delete model; }

// false: a rank of a split model is gone, and the logits hold anything.
bool native_forward(AnyModel* model, const Step* step, float* logits) { return model->forward(*step, logits); }

// Norm, rotate, store and attend for one layer. qkv [tokens, (heads + 2 × kv_heads) × head_dim] is changed;
// out is [tokens, heads × head_dim].
void native_attend(int dtype, const Layer* layer, const Batch* batch, const Cache* cache, float* qkv, float* out,
                   int threads) {
    (dtype ? Kernels<bf16>::attend : Kernels<float>::attend)(*layer, *batch, *cache, qkv, out, threads);
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
