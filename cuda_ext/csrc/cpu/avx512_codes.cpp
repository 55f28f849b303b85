// Codes with AVX-512.
#if defined(__x86_64__)
namespace {
constexpr int kVector = 64;
}  // namespace

#include "codes_template.h"

namespace bitsweep {
const CodeKernels avx512_codes = {unpack, pack, decode};
}  // namespace bitsweep
#endif
