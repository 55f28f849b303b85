// Codes with the vectors that compilers have on every machine.
#include "codes.h"

namespace bitsweep {
namespace {

struct Isa {
  static constexpr int kVector = 16, kWidth = 16;

  static void decode(const uint8_t* codes, float zero, float scale, float* __restrict out) {
    for (int k = 0; k < kWidth; k++) out[k] = (static_cast<float>(codes[k]) - zero) * scale;
  }
};

}  // namespace
}  // namespace bitsweep

#include "codes_template.h"

namespace bitsweep {
const CodeKernels portable_codes = {unpack, pack, decode};
}  // namespace bitsweep
