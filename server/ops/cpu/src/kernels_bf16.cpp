#include "kernels_of_type.h"

template struct Kernels<bf16>;
