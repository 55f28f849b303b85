// The product of one row of x by sums of whole numbers (fixed_template.h), by instruction set.
#pragma once

#include "kernels.h"

namespace bitsweep {

extern const FixedPoint avx2_fixed_point;
extern const FixedPoint avx512_fixed_point;
extern const FixedPoint avx512vnni_fixed_point;

}  // namespace bitsweep
