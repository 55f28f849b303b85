// Codes with the vectors that compilers have on every machine.
namespace {
constexpr int kVector = 16;
}  // namespace

#include "codes_template.h"

namespace bitsweep {
const CodeKernels portable_codes = {unpack, pack, decode};
}  // namespace bitsweep
