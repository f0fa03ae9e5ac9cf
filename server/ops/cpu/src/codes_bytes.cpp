#include "grouped_stripe.h"

void multiply_bytes(const ByteRows& x, const CodesForm& form, const uint8_t* stripe, int first, int rows, float* c) {
    with_bits(form.bits, [&]<int kBits>() {
        multiply_stripe(ByteProduct<kBits>{x, form.has_offsets()}, form, stripe, x.inputs, first, rows, c);
    });
}
