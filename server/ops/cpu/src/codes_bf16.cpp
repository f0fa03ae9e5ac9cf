#include "grouped_stripe.h"

template void multiply_part(const CodesPart&, int, PackedRows<bf16>, int, int, int, int, uint8_t*, float*);
