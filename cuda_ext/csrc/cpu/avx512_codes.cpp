// Codes with AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "codes.h"

namespace bitsweep {
namespace {

struct Isa {
  static constexpr int kVector = 64, kWidth = 16;

  static __m512 floats(const uint8_t* codes) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(sixteen));
  }
  static void decode(const uint8_t* codes, float zero, float scale, float* out) {
    const __m512 steps = _mm512_sub_ps(floats(codes), _mm512_set1_ps(zero));
    _mm512_storeu_ps(out, _mm512_mul_ps(steps, _mm512_set1_ps(scale)));
  }
};

}  // namespace
}  // namespace bitsweep

#include "codes_template.h"

namespace bitsweep {
const CodeKernels avx512_codes = {unpack, pack, decode};
}  // namespace bitsweep
#endif
