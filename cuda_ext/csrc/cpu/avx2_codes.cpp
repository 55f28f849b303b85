// Codes with AVX2.
#if defined(__x86_64__)
namespace {
constexpr int kVector = 32;
}  // namespace

#include "codes_template.h"

namespace bitsweep {
const CodeKernels avx2_codes = {unpack, pack, decode};
}  // namespace bitsweep
#endif
