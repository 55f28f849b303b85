// The product of one row of x by sums of whole numbers (avx2_fixed.cpp).
#pragma once

#include "kernels.h"

namespace bitsweep {

extern const FixedPoint avx2_fixed_point;

// Product::fixed is there.
void avx2_fixed_linear(const Product& product, int64_t first_tile, int64_t end_tile);

}  // namespace bitsweep
