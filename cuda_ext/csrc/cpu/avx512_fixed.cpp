// One row of x by sums of whole numbers with AVX-512.
#if defined(__x86_64__)
#include "avx512_whole.h"
#include "fixed.h"
#include "fixed_template.h"

namespace bitsweep {
const FixedPoint avx512_fixed_point = {fixed_words, same_fixed, fix, fixed_linear};
}  // namespace bitsweep
#endif
